"""3x3 convolutions with 4/9 of the multiply-adds, for CPU.

  y = A [(G k G^T) * (B d B^T)] A^T

are 2x2 pixels of the output, of a tile d of 4x4 pixels and the kernel k of one
channel. Summed over channels, for all tiles, the products in brackets are 16
products of matrices. A, B and G add and subtract, at most halves, so that the
result differs from a plain convolution by rounding alone.

Source: Lavin and Gray 2015, arXiv 1509.09308, section 4.1: F(2x2, 3x3).
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import derivatives

_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B
_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # A

# What the kernel's transform needs to be worth it.
_CHANNELS = 256
_PIXELS = 1024
# About as many factors and products are in memory at a time: a cache of 16 MiB.
_VALUES = 2**22
# Most parts that a convolution is made in: of more there is little gain (none
# for 2 maps of 80x104x256), and they take long to compile.
_PARTS = 4


def pays(x: Float[Array, 'b h w c'], kernel: Float[Array, '...']) -> bool:
  """Whether `convolution` of a map is faster than a plain one on CPU."""
  images, height, width, _ = x.shape
  return (
    kernel.shape[:2] == (3, 3)
    and min(kernel.shape[2:]) >= _CHANNELS
    and x.dtype == jnp.float32
    # A program for any number of images has a symbol for it.
    and isinstance(images, int)
    and images * height * width >= _PIXELS
    and _parts(x.shape, kernel) <= _PARTS
  )


def _parts(shape, kernel):
  """Parts of the rows of tiles, each of all images."""
  images, height, width, _ = shape
  rows, columns = -(-height // 2), -(-width // 2)
  values = 16 * images * rows * columns * sum(kernel.shape[2:])
  return min(max(1, round(values / _VALUES)), rows)


def _convolve(x, kernel):
  _, height, width, _ = x.shape
  rows, columns = -(-height // 2), -(-width // 2)
  count = _parts(x.shape, kernel)
  x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
  kernel = _stack(_transform(_KERNEL, [list(line) for line in kernel]))
  # Rows i, i + 2, ...: those of the pixels i of the tiles.
  lines = [x[:, i : i + 2 * rows - 1 : 2] for i in range(4)]
  # Devices that share the images have as much of each part.
  ends = [round(i * rows / count) for i in range(count + 1)]
  parts = [
    _convolve_tiles([line[:, start:stop] for line in lines], kernel, columns)
    for start, stop in itertools.pairwise(ends)
  ]
  return jnp.concatenate(parts, axis=1)[:, :height, :width]


def _convolve_tiles(lines, kernel, columns):
  """The output [b, 2 * rows, 2 * columns, f] of rows of tiles."""
  b, rows, _, c = lines[0].shape
  tiles = [
    [line[:, :, j : j + 2 * columns - 1 : 2].reshape(-1, c) for j in range(4)]
    for line in lines
  ]
  products = jnp.matmul(_stack(_transform(_INPUT, tiles)), kernel)
  products = products.reshape(4, 4, b, rows, columns, -1)
  out = _transform(_OUTPUT, [list(line) for line in products])
  out = jnp.stack([jnp.stack(line, axis=3) for line in out], axis=2)
  return out.reshape(b, 2 * rows, 2 * columns, -1)


def _transform(matrix, grid):
  """The grid of arrays matrix @ grid @ matrix^T."""
  grid = [_combine(matrix, line) for line in grid]
  grid = [_combine(matrix, line) for line in zip(*grid, strict=True)]
  return list(zip(*grid, strict=True))


def _combine(matrix, arrays):
  """Sums of arrays by the rows of a matrix."""
  return [
    sum(
      factor * x if abs(factor) != 1 else x if factor > 0 else -x
      for factor, x in zip(line, arrays, strict=True)
      if factor
    )
    for line in matrix
  ]


def _stack(grid):
  return jnp.stack([x for line in grid for x in line])


def _forward(plain, x, kernel):
  del plain
  return _convolve(x, kernel), ()


def _backward(plain, inputs, _, dout):
  x, kernel = inputs
  mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
  _, pullback = jax.vjp(lambda kernel: plain(x, kernel), kernel)
  # The gradient of the kernel took longer from tiles: 31 ms, and 28 without.
  return _convolve(dout, mirrored), *pullback(dout)


# convolution(plain, x, kernel) is plain(x, kernel), a convolution with zeros
# around the map, as many as keep its size.
convolution = derivatives.define(
  _forward, _backward, lambda plain, x, kernel: plain(x, kernel)
)
