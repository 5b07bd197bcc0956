"""Kernels for CPU in C++, opt-in: see README.md beside this file."""

import ctypes
import functools
import logging
import os
import subprocess
from typing import Any

import jax
import numpy as np

from acmix_jax.cpu_kernels import library

_HANDLERS = (
  'LocalAttention',
  'LocalAttentionGradient',
  'ShiftConvolution',
  'ShiftConvolutionMapGradient',
  'ShiftConvolutionKernelGradient',
)
# Channels of a vector on any processor are a divisor of this.
LANES = 16

logger = logging.getLogger(__name__)
# Why the kernels cannot be called; None once they can.
_reason: str | None = 'acmix_jax.cpu_kernels.enable() has not been called.'


@functools.cache
def enable() -> bool:
  """Lets the operators compute by these kernels on CPU.

  Compiles them for this machine, or loads what was compiled before; the first
  call does the work and says in a line at INFO what came of it. What jax has
  traced by then stays as it is. ACMIX_JAX_CPU_KERNELS=0 in the environment
  forbids it.

  Returns:
    Whether the kernels are available; `why_not` says why they are not.
  """
  global _reason
  _reason = _load()
  return _reason is None


def enabled() -> bool:
  """Whether the operators may call the kernels; see `why_not`."""
  return why_not() is None


def why_not() -> str | None:
  """Reason why the kernels cannot be called; None if they can.

  Never starts a compiler, unless ACMIX_JAX_CPU_KERNELS=1 asks for `enable` at
  the first question.
  """
  if os.environ.get('ACMIX_JAX_CPU_KERNELS') == '1':
    enable()
  return _reason


def call(name: str, like: Any, *arrays: jax.Array, **attributes: int) -> Any:
  """Calls a kernel; the kernels must be enabled.

  Args:
    name: Name of its handler.
    like: Pytree with the shapes and dtypes of the results.
    *arrays: Its arguments.
    **attributes: Integers that it is compiled with.

  Returns:
    Pytree of arrays.
  """
  results = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
  run = jax.ffi.ffi_call(_target(name), results, vmap_method='sequential')
  return run(*arrays, **{k: np.int64(v) for k, v in attributes.items()})


def _load() -> str | None:
  """Registers the kernels; a reason if that fails."""
  if os.environ.get('ACMIX_JAX_CPU_KERNELS') == '0':
    reason = 'ACMIX_JAX_CPU_KERNELS=0 forbids them.'
    logger.info('No kernels for CPU: %s', reason)
    return reason
  try:
    with library.built() as path:
      kernels = ctypes.CDLL(str(path))
  # A CXX that no shell would take is a ValueError.
  except (OSError, ValueError, subprocess.SubprocessError) as error:
    reason = getattr(error, 'stderr', None) or str(error)
    logger.info('No kernels for CPU: %s', reason)
    return reason
  for name in _HANDLERS:
    handler = jax.ffi.pycapsule(getattr(kernels, name))
    jax.ffi.register_ffi_target(_target(name), handler, platform='cpu')
  logger.info('Kernels for CPU: %s', path)
  return None


def _target(name):
  return f'acmix_jax.{name}'
