"""Calls that are traced where a program is compiled, not where it is written.

`lax.platform_dependent` traces its branch for every platform and compiles one.
A branch that only calls a deferred function costs nothing where it is not
compiled, and needs no compiler of that platform.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching, mlir


def call(
  function: Callable[..., Any], platform: str, like: Any, *arrays: jax.Array
) -> list:
  """The leaves of function(*arrays), traced when a program is compiled.

  The precision of products and the 64-bit mode are those of this call. It has
  no derivative; see `derivatives.define`.

  Args:
    function: Function to a pytree of arrays.
    platform: The one that the function is compiled for. A program that is
      lowered for several platforms has zeros on the others, for jax lowers the
      branches of each platform for all.
    like: Pytree with the shapes and dtypes of the results.
    *arrays: Arguments.
  """
  precision = jax.config.jax_default_matmul_precision
  x64 = jax.config.jax_enable_x64

  def run(*arrays):
    with contextlib.ExitStack() as stack:
      stack.enter_context(jax.default_matmul_precision(precision))
      stack.enter_context(_enable_x64(x64))
      return jax.tree.leaves(function(*arrays))

  like = tuple((x.shape, x.dtype) for x in jax.tree.leaves(like))
  return _deferred_p.bind(*arrays, run=run, platform=platform, like=like)


def _enable_x64(value):
  # jax < 0.8 has it among its experiments.
  if not hasattr(jax, 'enable_x64'):
    from jax import experimental

    return experimental.enable_x64(value)
  return jax.enable_x64(value)


# run: Function of the arrays to the list of results.
# platform: The one that it is for.
# like: Shape and dtype of each result.
_deferred_p = core.Primitive('deferred_call')
_deferred_p.multiple_results = True


@_deferred_p.def_impl
def _impl(*arrays, run, **_):
  return jax.jit(run)(*arrays)


@_deferred_p.def_abstract_eval
def _abstract_eval(*_, like, **__):
  return [jax.core.ShapedArray(shape, dtype) for shape, dtype in like]


def _batch(arrays, axes, *, run, platform, like):
  [size] = {
    x.shape[axis]
    for x, axis in zip(arrays, axes, strict=True)
    if axis is not None
  }
  run = jax.vmap(run, tuple(axes))
  like = tuple(((size, *shape), dtype) for shape, dtype in like)
  out = _deferred_p.bind(*arrays, run=run, platform=platform, like=like)
  return out, [0] * len(like)


def _lower(lowered_for, context, *values, run, platform, like):
  def zeros(*arrays):
    del arrays
    return [jnp.zeros(shape, dtype) for shape, dtype in like]

  function = run if platform == lowered_for else zeros
  return mlir.lower_fun(function, multiple_results=True)(context, *values)


batching.primitive_batchers[_deferred_p] = _batch
for _platform in ('cpu', 'cuda', 'rocm', 'tpu'):
  mlir.register_lowering(
    _deferred_p, functools.partial(_lower, _platform), platform=_platform
  )
