"""Kernels for CPU in C++: compiled on this machine, called through jax's FFI.

XLA computes the two aggregations on CPU several times slower than a loop over
vectors does. The sources beside this file are compiled once, for the processor
at hand, by the compiler that CXX names or the first of c++, g++ and clang++ on
the path; the library is kept in $XDG_CACHE_HOME or ~/.cache. Where there is no
compiler, 'auto' computes the same without the kernels. Where that folder cannot
be written, every process compiles for itself.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from typing import Any

import jax
import numpy as np

_SOURCES = pathlib.Path(__file__).parent
_FLAGS = ('-std=c++17', '-O3', '-march=native', '-fPIC', '-shared')
_HANDLERS = (
  'LocalAttention',
  'LocalAttentionGradient',
  'ShiftConvolution',
  'ShiftConvolutionMapGradient',
  'ShiftConvolutionKernelGradient',
)
# Channels of a vector on any processor are a divisor of this.
LANES = 16


@functools.cache
def missing() -> str:
  """Why there are no kernels on this machine; empty if there are.

  Compiles and loads them at the first call.
  """
  if jax.default_backend() != 'cpu':
    return 'jax does not compute on CPU by default here.'
  try:
    library = ctypes.CDLL(str(_build()))
  # CXX that no shell would take is a ValueError.
  except (OSError, ValueError, subprocess.SubprocessError) as error:
    reason = getattr(error, 'stderr', None) or error
    logging.warning('No kernels for CPU, so it is slower: %s', reason)
    return str(reason)
  for name in _HANDLERS:
    handler = jax.ffi.pycapsule(getattr(library, name))
    jax.ffi.register_ffi_target(_target(name), handler, platform='cpu')
  return ''


def check(operation: str, others: str):
  """Raises ValueError that names the others if there are no kernels."""
  if missing():
    raise ValueError(
      f"{operation}: no 'cpu_kernel' kernel, as {missing()} {others} need none."
    )


def call(name: str, results: Any, *arrays: jax.Array, **attributes: int) -> Any:
  """Calls a kernel.

  Args:
    name: of its handler.
    results: pytree of `jax.ShapeDtypeStruct`.
    *arrays: its arguments.
    **attributes: integers that it is compiled with.

  Returns:
    Arrays like `results`.

  Raises:
    ValueError: within a `jax.shard_map` that checks what varies over devices;
      jax would take the results for equal on all of them.
  """
  if any(_varying(x) for x in arrays):
    raise ValueError(
      "The kernels for CPU need check_vma=False in the caller's jax.shard_map."
    )
  run = jax.ffi.ffi_call(_target(name), results, vmap_method='sequential')
  return run(*arrays, **{k: np.int64(v) for k, v in attributes.items()})


def _varying(x):
  kind = jax.typeof(x)
  # jax < 0.10 calls it vma.
  kind = getattr(kind, 'manual_axis_type', kind)
  return getattr(kind, 'varying', None) or getattr(kind, 'vma', None)


def _target(name):
  return f'acmix_jax.{name}'


def _build() -> pathlib.Path:
  """The library of the sources as they are, compiled if it is new.

  Raises:
    FileNotFoundError: there is no compiler.
    subprocess.SubprocessError: it failed; `stderr` says why.
  """
  compiler = _compiler()
  sources, headers = (sorted(_SOURCES.glob(f'*.{x}')) for x in ('cc', 'h'))
  version = _output([*compiler, '--version'])
  parts = [version, *compiler, *_FLAGS, jax.__version__, _processor()]
  parts += [path.read_text() for path in sources + headers]
  key = hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]
  library = _cache() / f'kernels-{key}.so'
  if library.exists():
    return library
  logging.info('Compiling the kernels for CPU, once on this machine.')
  flags = [*_FLAGS, '-isystem', jax.ffi.include_dir()]
  # Processes that start together compile together; the last one's stays.
  with tempfile.TemporaryDirectory(dir=library.parent) as folder:
    new = pathlib.Path(folder) / library.name
    _output([*compiler, *flags, *map(str, sources), '-o', str(new)])
    return new.replace(library)


def _compiler() -> list[str]:
  if os.environ.get('CXX'):
    return shlex.split(os.environ['CXX'])
  for name in ('c++', 'g++', 'clang++'):
    if path := shutil.which(name):
      return [path]
  raise FileNotFoundError(
    'no C++ compiler on the path; install g++, or name one in CXX.'
  )


def _output(command: list[str]) -> str:
  run = subprocess.run(command, capture_output=True, text=True, check=True)
  return run.stdout


def _processor() -> str:
  """What the compiler may use; homes are shared by unequal machines."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  flags = (line for line in lines if line.startswith(('flags', 'Features')))
  return platform.machine() + next(flags, platform.processor())


def _cache() -> pathlib.Path:
  """The folder of libraries, or a new one if it cannot be written."""
  # A user without a home is a RuntimeError.
  with contextlib.suppress(OSError, RuntimeError):
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(home) / 'acmix_jax'
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      return folder
  return pathlib.Path(tempfile.mkdtemp(prefix='acmix_jax-'))
