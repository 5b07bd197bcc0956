"""The grouped convolution as a sum of shifted maps, each times its weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from acmix_jax.ops import windows


def convolve(
  maps: Sequence[jax.Array], kernel: jax.Array, strides: int, dilation: int
) -> jax.Array:
  """Grouped convolution of several [b, h, w, m, d] by [k, k, sum of m, d * n].

  Sums are kept in float32.
  """
  x = jnp.concatenate(maps, axis=3)
  _, h, w, _, d = x.shape
  x = jnp.pad(
    x, ((0, 0), *windows.edges(kernel.shape[:2], dilation), (0, 0), (0, 0))
  )
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
