"""What heads that look at every cell of a map share."""

import functools
from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

from acmix_jax.nn import layers

# A convolution as mmdetection's dense heads start: normal, and biases of 0.
conv = functools.partial(
  layers.Conv, use_bias=True, kernel_init=nn.initializers.normal(0.01)
)


def apply_tower(
  convs: Sequence[nn.Module], maps: Sequence[Float[Array, 'b _h _w _c']]
) -> list[Float[Array, 'b _h _w _k']]:
  """Each map through the convolutions one after the other, each with relu."""
  for layer in convs:
    maps = [nn.relu(layer(x)) for x in maps]
  return list(maps)


def by_anchor(
  x: Float[Array, 'b h w c'], channels: int
) -> Float[Array, 'b n {channels}']:
  """Outputs of each anchor: channel anchor * channels + i of x is its i-th."""
  return x.reshape(len(x), -1, channels)
