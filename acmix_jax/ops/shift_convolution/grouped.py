"""The grouped convolution as one of XLA's."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from acmix_jax.ops import windows


def convolve(
  maps: Sequence[jax.Array], kernel: jax.Array, strides: int, dilation: int
) -> jax.Array:
  """Grouped convolution of several [b, h, w, m, d] by [k, k, sum of m, d * n].

  It moves the fewest bytes on TPU. XLA on CPU has no fast grouped convolution
  and takes about fifty times as long as `channels`.
  """
  b, h, w, _, d = maps[0].shape
  x = jnp.concatenate(maps, axis=3).swapaxes(3, 4)
  return lax.conv_general_dilated(
    x.reshape(b, h, w, -1),
    kernel,
    window_strides=(strides, strides),
    padding=windows.edges(kernel.shape[:2], dilation),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=d,
  )
