"""Attention with reflected borders as attention over the pixels of the map."""

import jax
import jax.numpy as jnp
from jax import lax

from acmix_jax.ops import windows


def log_counts(
  query: jax.Array, key: jax.Array, size: int, kernel_size: int, dilation: int
) -> jax.Array:
  """Logarithm of how often a pixel of a line is in the window of another.

  A key beyond the border is a pixel of the map seen again in the mirror. Added
  to the logits of the pixels that exist, this gives the attention over a
  window that reflects, with no padding of keys and values. Of a square window,
  the logarithms of rows and columns add up.

  Args:
    query: int32 pixels in the centre of a window.
    key: int32 pixels of any kind, broadcast against `query`.
    size: pixels of the line.
    kernel_size: odd side of the window.
    dilation: pixels between neighbouring keys of a window.

  Returns:
    float32; -inf where the key is not in the window or not in the line.
  """
  reach, last = windows.padding(kernel_size, dilation), size - 1

  def seen(distance, mirrored):
    distance = jnp.abs(distance)
    inside = (distance <= reach) & (lax.rem(distance, dilation) == 0)
    return (inside & mirrored).astype(jnp.float32)

  exists = (key >= 0) & (key <= last)
  return jnp.log(
    seen(key - query, exists)
    + seen(key + query, exists & (key > 0))
    + seen(2 * last - key - query, exists & (key < last))
  )
