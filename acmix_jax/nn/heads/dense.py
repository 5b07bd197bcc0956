"""What heads that look at every cell of a map share."""

import functools

from flax import linen as nn
from jaxtyping import Array, Float

from acmix_jax.nn import layers

# A convolution as mmdetection's dense heads start: normal, and biases of 0.
conv = functools.partial(
  layers.Conv, use_bias=True, kernel_init=nn.initializers.normal(0.01)
)


def by_anchor(
  x: Float[Array, 'b h w c'], channels: int
) -> Float[Array, 'b n {channels}']:
  """Outputs of each anchor: channel anchor * channels + i of x is its i-th."""
  return x.reshape(len(x), -1, channels)
