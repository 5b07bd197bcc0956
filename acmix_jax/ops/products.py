"""Products of a map's pixels with a matrix: dense layers, 1x1 convolutions."""

import functools
from typing import Any

import jax
from jax import lax


def flat(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
  """Multiplies x by the kernel, both as matrices.

  Args:
    x: [..., c].
    kernel: [c, n].
    **options: of `lax.dot_general`.

  Returns:
    [..., n].
  """
  rows = x.reshape(-1, x.shape[-1])
  y = lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
  return y.reshape(*x.shape[:-1], -1)


def dense(
  x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any
) -> jax.Array:
  """`lax.dot_general` of [..., c] by [c, n], as dense layers of flax call it.

  `flat` on CPU: for the gradient of the kernel, a sum over several axes, XLA
  would transpose x together with all that computes it, pixel by pixel.
  Elsewhere XLA lays out the map itself best.
  """
  multiply = functools.partial(
    lax.dot_general, dimension_numbers=dimension_numbers, **options
  )
  if x.ndim < 3:
    return multiply(x, kernel)
  return lax.platform_dependent(
    x, kernel, cpu=functools.partial(flat, **options), default=multiply
  )
