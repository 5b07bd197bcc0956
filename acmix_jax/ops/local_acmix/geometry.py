"""What the implementations of both paths are told of them."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from acmix_jax.ops.local_attention import geometry as attention_geometry
from acmix_jax.ops.shift_convolution import geometry as convolution_geometry


class Problem(NamedTuple):
  """Static description of a call.

  Attributes:
    attention: That of the attention.
    convolution: That of the convolution.
    taps: Rows and columns of the window of the convolution.
  """

  attention: attention_geometry.Problem
  convolution: convolution_geometry.Problem
  taps: tuple[int, int]


def describe(
  q: Float[Array | jax.ShapeDtypeStruct, 'b h w n d'],
  k: Float[Array | jax.ShapeDtypeStruct, 'b h w n d'],
  v: Float[Array | jax.ShapeDtypeStruct, 'b h w n d'],
  kernel: Float[Array | jax.ShapeDtypeStruct, 'kh kw m f'],
  kernel_size: int,
  dilation: int,
) -> Problem:
  """The problem of these maps and this kernel."""
  return Problem(
    attention_geometry.describe(q, k, v, kernel_size, 1, dilation),
    convolution_geometry.describe([q, k, v], kernel, 1, dilation),
    kernel.shape[:2],
  )
