"""Maps in another size: each axis is multiplied by a small constant matrix.

Both the resized map and its gradient are products then, where gathered pixels
would have a scatter as gradient. The matrices are made when a program is
traced, and take the dtype of the map: in bfloat16 the weights of bilinear
interpolation by 2, 4, 8, ... are exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int

from acmix_jax.ops import cost_marks, xla_cpu


def bilinear(
  x: Float[Array | np.ndarray, 'b h w c'], size: tuple[int, int]
) -> Float[Array, 'b ho wo c']:
  """Bilinear interpolation between the centres of pixels.

  As PyTorch's `interpolate` with align_corners=False: beyond the border the
  outermost pixel is repeated, and nothing is smoothed where the map shrinks.

  Args:
    x: Map.
    size: Height and width of the result.
  """
  return _resample(x, *map(linear_matrix, x.shape[1:3], size))


def nearest(
  x: Float[Array | np.ndarray, 'b h w c'], size: tuple[int, int]
) -> Float[Array, 'b ho wo c']:
  """Pixel floor(i * h / ho) of each line, in integers: PyTorch's 'nearest'.

  `jax.image.resize` takes the pixel nearest to the centre, which is another one
  where ho is no multiple of h.

  Args:
    x: Map.
    size: Height and width of the result.
  """

  def matrix(old, new):
    return np.eye(old)[np.arange(new) * old // new]

  return _resample(x, *map(matrix, x.shape[1:3], size))


def adaptive_average_pool(
  x: Float[Array | np.ndarray, 'b h w c'], bins: int
) -> Float[Array, 'b {bins} {bins} c']:
  """Means over a grid of bins: PyTorch's `adaptive_avg_pool2d`.

  Bin i of a line of h pixels covers floor(i * h / bins) to
  ceil((i + 1) * h / bins): bins overlap where their number does not divide h.

  Args:
    x: Map; it may have fewer pixels than bins.
    bins: Bins along each side.
  """

  def matrix(old, new):
    first = np.arange(new) * old // new
    end = -(-np.arange(1, new + 1) * old // new)
    pixels = np.arange(old)
    inside = (pixels >= first[:, None]) & (pixels < end[:, None])
    return inside / inside.sum(axis=1, keepdims=True)

  return _resample(x, *(matrix(side, bins) for side in x.shape[1:3]))


def linear_matrix(old: int, new: int) -> Float64[np.ndarray, 'new old']:
  """Weights of the pixels of a line in each pixel of the resized line."""
  return interpolation_matrix(old, new, lambda distance: 1 - distance, 1)


def linear_rows(
  pixels: Int[Array, '*b n'], old: int, new: Int[Array, '*#b 1']
) -> Float32[Array, '*b n {old}']:
  """Rows of `linear_matrix`, for lengths that only the device knows.

  The coordinate of pixel p on the old line, (p + 0.5) * old / new - 0.5, is a
  fraction of whole numbers here: no digit is lost on long lines.

  Args:
    pixels: Pixels of the resized line. Those beyond it are the line's
      outermost pixels.
    old: Pixels of the line.
    new: Pixels of the resized line; old * new is below 2**29.
  """
  parts = 2 * new
  coordinate = (2 * pixels + 1) * old - new  # in parts of a pixel
  coordinate = jnp.clip(coordinate, 0, parts * (old - 1))
  below = (coordinate // parts)[..., None]
  weight = ((coordinate % parts) / parts)[..., None]
  line = jnp.arange(old).reshape((1,) * pixels.ndim + (old,))
  return jnp.where(line == below, 1 - weight, 0) + jnp.where(
    line == below + 1, weight, 0
  )


def interpolation_matrix(
  old: int,
  new: int,
  kernel: Callable[[Float64[np.ndarray, ' n']], Float64[np.ndarray, ' n']],
  radius: int,
) -> Float64[np.ndarray, 'new old']:
  """Weights of the pixels of a line, for any kernel.

  Args:
    old: Pixels of the line.
    new: Pixels of the resized line.
    kernel: Weight of a pixel by its distance, up to the radius.
    radius: Pixels on each side of a point that have a weight.
  """
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  below = np.floor(centres).astype(int)
  matrix = np.zeros((new, old))
  for offset in range(1 - radius, radius + 1):
    pixel = below + offset
    weight = kernel(np.abs(centres - pixel))
    np.add.at(matrix, (np.arange(new), pixel.clip(0, old - 1)), weight)
  return matrix


def multiply(
  matrix: Float[np.ndarray, 'n m'], x: Float[Array, '...'], axis: int
) -> Float[Array, '...']:
  """The map with each line along an axis multiplied by a matrix.

  Args:
    matrix: Weights, which take the dtype of the map.
    x: Map.
    axis: Axis of m pixels, which become n.
  """
  with jax.named_scope(cost_marks.RESIZE):
    return xla_cpu.multiply_axis(jnp.asarray(matrix, x.dtype), x, axis)


def _resample(x, rows, columns):
  """The map with its columns and rows multiplied by the matrices."""
  x = jnp.asarray(x)
  for axis, matrix in ((2, columns), (1, rows)):
    if not np.array_equal(matrix, np.eye(*matrix.shape)):
      x = multiply(matrix, x, axis)
  return x
