"""Convolution of maps of several sizes, as if all had the size of the first.

y = conv(concat(x_0, resize(x_1), resize(x_2), ...)), where resize is bilinear

Interpolation mixes the pixels of a channel, a pixel of the kernel mixes the
channels of a pixel: the two commute. A small map is therefore multiplied with
each pixel of the kernel at its own size, and one matrix along each axis then
resizes, shifts and sums the products. Of four maps that halve, a convolution
takes a third of the multiply-adds so. The result is the same up to rounding.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from acmix_jax.ops import cost_marks, dense, resize, windows, xla_cpu


def resized_convolution(
  maps: Sequence[Float[Array, 'b _h _w _c']],
  kernel: Float[Array, 'kh kw c f'],
) -> Float[Array, 'b h w f']:
  """Convolution with zeros around the maps, as many as keep their size.

  Args:
    maps: The first says the size [h, w]; the others are brought to it by
      bilinear interpolation, as `resize.bilinear` does.
    kernel: Weights of the channels of all maps; both sides are odd.
  """
  ends = np.cumsum([x.shape[-1] for x in maps])[:-1]
  kernels = jnp.split(kernel, ends, axis=2)
  out = xla_cpu.convolution(maps[0], kernels[0], strides=1)
  for x, part in zip(maps[1:], kernels[1:], strict=True):
    out += _of_resized(x, part, maps[0].shape[1:3])
  return out


def _of_resized(x, kernel, size):
  """Convolution of one map that is brought to a size."""
  rows, columns, _, _ = kernel.shape
  _, height, width, _ = x.shape
  # The sources multiply the resized map.
  counted = cost_marks.counted_as(math.prod(size), height * width)
  with jax.named_scope(counted):
    products = [
      dense.dense(x, jnp.concatenate(part, axis=-1))
      for part in jnp.moveaxis(kernel, 1, 0)
    ]
  # The pixels of the kernel follow each other along the axis that is resized.
  x = jnp.concatenate(products, axis=2)
  x = resize.multiply(_shifted_matrices(columns, width, size[1]), x, 2)
  x = jnp.concatenate(jnp.split(x, rows, axis=-1), axis=1)
  return resize.multiply(_shifted_matrices(rows, height, size[0]), x, 1)


@functools.cache
def _shifted_matrices(
  count: int, old: int, new: int
) -> Float64[np.ndarray, 'new columns']:
  """Matrices of bilinear interpolation, one for each pixel of a kernel.

  Row p of matrix i has the weights of pixel p + i - reach of the resized line;
  beyond the line they are zeros, as around a map that is convolved.
  """
  reach = windows.reach(count)
  padded = np.pad(resize.linear_matrix(old, new), ((reach, reach), (0, 0)))
  return np.concatenate([padded[i : i + new] for i in range(count)], axis=1)
