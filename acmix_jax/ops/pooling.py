"""Pooling of maps."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from acmix_jax.ops import windows


def max_pool(x: jax.Array, size: int, padding: int = 0) -> jax.Array:
  """The largest of each window, at every second row and column.

  The gradient goes to the first of equals, as in PyTorch. On CPU the positions
  of a window are compared map by map: XLA finds the places of the maxima for
  the gradient with maps of indices, which takes eight times as long there.

  Args:
    x: map [b, h, w, c].
    size: side of a window.
    padding: pixels added to each side, which are never the largest.

  Returns:
    [b, h', w', c] with h' = (h + 2 * padding - size) // 2 + 1.
  """
  pads = ((padding, padding), (padding, padding))

  def compare(x):
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (
      windows.output_size(side - size + 1, 2) for side in x.shape[1:3]
    )
    largest = jnp.full((), -jnp.inf, x.dtype)
    for i, j in itertools.product(range(size), repeat=2):
      y = x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
      largest = jnp.where((y > largest) | jnp.isnan(y), y, largest)
    return largest

  def pool(x):
    return lax.reduce_window(
      x,
      -jnp.inf,
      lax.max,
      window_dimensions=(1, size, size, 1),
      window_strides=(1, 2, 2, 1),
      padding=((0, 0), *pads, (0, 0)),
    )

  return lax.platform_dependent(x, cpu=compare, default=pool)
