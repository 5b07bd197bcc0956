"""Convolution of maps."""

import functools

import jax
from jax import lax

from acmix_jax.ops import products, windows


def convolution(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
  """Convolution with zeros around the map, as many as keep its size.

  On CPU one with a 1x1 kernel is written as a product: XLA computes the
  gradient of such a kernel with the whole map as the window, which takes two to
  five times as long there. Elsewhere a convolution serves XLA best.

  Args:
    x: map [b, h, w, c].
    kernel: [k, k, c, n], k odd.
    strides: pixels between outputs.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), n].
  """
  padding = [(windows.padding(side),) * 2 for side in kernel.shape[:2]]
  convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=(strides, strides),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  if kernel.shape[:2] != (1, 1):
    return convolve(x, kernel)

  def multiply(x, kernel):
    return products.flat(x[:, ::strides, ::strides], kernel[0, 0])

  return lax.platform_dependent(x, kernel, cpu=multiply, default=convolve)
