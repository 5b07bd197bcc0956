"""Weights of the pixels of a line in the means over the bins of a segment.

RoIAlign and the targets of masks are made of them, along rows and columns.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Shaped


def bin_weights(
  start: Float[Array, '*r'],
  stop: Float[Array, '*r'],
  bins: int,
  pixels: Shaped[Array, '*#r p'],
  first: float | Shaped[Array, '*#r'],
  last: float | Shaped[Array, '*#r'],
) -> Float32[Array, '*r {bins} p']:
  """Weights of the pixels of a line in the means over the bins of a segment.

  A bin has n = ceil((stop - start) / bins) samples, evenly spaced about its
  centre; a sample at s gives max(0, 1 - |s - i|) to pixel i, over n. Samples
  up to 1 beyond the first or the last pixel count as if they were at it, those
  farther out count nothing.

  Samples ascend by equal steps, so that those between two pixels have a number
  and a sum without a loop.

  Args:
    start: Start of each segment, in the coordinate in which pixel i is at i.
    stop: Its end; there are no samples if it is not beyond the start.
    bins: Bins of a segment.
    pixels: Pixels that are asked for.
    first: First pixel of the line.
    last: Last pixel of the line.
  """
  start, stop = (x.astype(jnp.float32)[..., None, None] for x in (start, stop))
  first, last = (
    jnp.asarray(x, jnp.float32)[..., None, None] if jnp.ndim(x) else x
    for x in (first, last)
  )
  y = pixels.astype(jnp.float32)[..., None, :]
  n = _samples(stop - start, bins)
  # By a number that is no constant: a compiler would multiply by its inverse.
  step = jnp.where(n > 0, (stop - start) / (bins * jnp.maximum(n, 1)), 1)
  # The first sample of each bin.
  index = jnp.arange(bins, dtype=jnp.float32)
  index = index.reshape((1,) * (start.ndim - 2) + (-1, 1))
  head = start + index * (step * n) + step / 2

  def below(t):
    return jnp.clip(jnp.ceil((t - head) / step), 0, n)

  def up_to(t):
    return jnp.clip(jnp.floor((t - head) / step) + 1, 0, n)

  def near(t):
    return jnp.maximum(1 - jnp.abs(t - y), 0)

  inside = below(first), up_to(last)
  a, b, c = (jnp.clip(below(t), *inside) for t in (y - 1, y, y + 1))
  # Sums of arithmetic series: s - (y - 1) before the pixel, y + 1 - s from it.
  rising = (b - a) * (head + a * step - (y - 1) + step * (b - a - 1) / 2)
  falling = (c - b) * (y + 1 - head - b * step - step * (c - b - 1) / 2)
  at_first = (inside[0] - below(first - 1)) * near(first)
  at_last = (up_to(last + 1) - inside[1]) * near(last)
  return (rising + falling + at_first + at_last) / jnp.maximum(n, 1)


def _samples(side, bins):
  """ceil(side / bins), at least 0, however a compiler divides."""
  n = jnp.ceil(side * (1 / bins))
  n = jnp.where((n - 1) * bins >= side, n - 1, n)
  n = jnp.where(n * bins < side, n + 1, n)
  return jnp.maximum(n, 0)
