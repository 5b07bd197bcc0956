"""The grouped convolution as a sum of shifted maps, each times its weights."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import windows
from acmix_jax.ops.shift_convolution import geometry


def convolve(
  problem: geometry.Problem,
  maps: Sequence[Float[Array, 'b h w _m d']],
  kernel: Float[Array, 'kh kw m f'],
) -> Float[Array, 'b ho wo f']:
  """Grouped convolution of the concatenated maps, a group for each channel.

  Sums are kept in float32.
  """
  strides, dilation = problem.strides, problem.dilation
  x = jnp.concatenate(maps, axis=3)
  _, h, w, _, d = x.shape
  padding = windows.same_padding(kernel.shape[:2], dilation)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0), (0, 0)))
  kernel = kernel.reshape(*kernel.shape[:3], d, -1)
  total = jnp.zeros((), jnp.float32)
  for i in range(kernel.shape[0]):
    for j in range(kernel.shape[1]):
      top, left = i * dilation, j * dilation
      total += jnp.einsum(
        'bhwmd,mdn->bhwdn',
        x[:, top : top + h : strides, left : left + w : strides],
        kernel[i, j],
        preferred_element_type=jnp.float32,
      )
  return total.reshape(*total.shape[:3], -1).astype(x.dtype)
