"""What the implementations of an ACmix layer of windows are told of it."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from acmix_jax.ops import shifted_windows
from acmix_jax.ops.shift_convolution import geometry as convolution_geometry
from acmix_jax.ops.shifted_windows import geometry as window_geometry


class Problem(NamedTuple):
  """Static description of a call.

  Attributes:
    attention: That of the attention.
    convolution: That of the convolution.
    taps: Rows and columns of the window of the convolution.
    channels: Channels of the input.
    size: Rows and columns of the map but for its padding, which the
      convolution never sees.
  """

  attention: window_geometry.Problem
  convolution: convolution_geometry.Problem
  taps: tuple[int, int]
  channels: int
  size: tuple[int, int]

  @property
  def valid(self) -> Bool[np.ndarray, 'h w'] | None:
    """See `shifted_windows.valid_pixels`."""
    attention = self.attention
    return shifted_windows.valid_pixels(
      *self.size, attention.window_size, attention.shift
    )


def describe(
  x: Float[Array | jax.ShapeDtypeStruct, 'b h w c'],
  bias: Float[Array | jax.ShapeDtypeStruct, 'n t t'],
  kernel: Float[Array | jax.ShapeDtypeStruct, 'kh kw m f'],
  window_size: int,
  *,
  size: tuple[int, int],
  shift: int,
  attend_padding: bool,
  varying: bool = False,
) -> Problem:
  """The problem of this input, this bias and this kernel."""
  heads = len(bias)
  shape = (*x.shape[:3], 3 * heads, kernel.shape[3] // heads)
  maps = jax.ShapeDtypeStruct(shape, x.dtype)
  seen = x.shape[1:3] if attend_padding else size
  attention = window_geometry.describe(maps, bias, window_size, seen, shift)
  convolution = convolution_geometry.describe([maps], kernel, 1, 1)
  return Problem(
    attention._replace(varying=varying),
    convolution._replace(varying=varying),
    kernel.shape[:2],
    x.shape[3],
    size,
  )
