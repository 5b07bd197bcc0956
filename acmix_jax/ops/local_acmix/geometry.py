"""What the implementations of an ACmix layer are told of it."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from acmix_jax.ops import windows
from acmix_jax.ops.local_attention import geometry as attention_geometry
from acmix_jax.ops.shift_convolution import geometry as convolution_geometry


class Problem(NamedTuple):
  """Static description of a call.

  Attributes:
    attention: That of the attention.
    convolution: That of the convolution.
    taps: Rows and columns of the window of the convolution.
    channels: Channels of the input.
  """

  attention: attention_geometry.Problem
  convolution: convolution_geometry.Problem
  taps: tuple[int, int]
  channels: int


def describe(
  x: Float[Array | jax.ShapeDtypeStruct, 'b h w c'],
  slopes: Float[Array | jax.ShapeDtypeStruct, '2 d'],
  kernel: Float[Array | jax.ShapeDtypeStruct, 'kh kw m f'],
  kernel_size: int,
  strides: int,
  dilation: int,
  *,
  varying: bool = False,
) -> Problem:
  """The problem of this input, these slopes and this kernel."""
  depth = slopes.shape[1]
  heads = kernel.shape[3] // depth, depth
  keys = jax.ShapeDtypeStruct((*x.shape[:3], *heads), x.dtype)
  size = (windows.output_size(side, strides) for side in x.shape[1:3])
  queries = jax.ShapeDtypeStruct((x.shape[0], *size, *heads), x.dtype)
  attention = attention_geometry.describe(
    queries, keys, keys, kernel_size, strides, dilation
  )
  convolution = convolution_geometry.describe([keys], kernel, strides, dilation)
  return Problem(
    attention._replace(varying=varying),
    convolution._replace(varying=varying),
    kernel.shape[:2],
    x.shape[3],
  )
