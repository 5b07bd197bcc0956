"""What the implementations of the grouped convolution are told of it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from acmix_jax.ops import sharding


class Problem(NamedTuple):
  """Static description of a call.

  Attributes:
    dtype: Dtype of the maps and the kernel.
    depth: Number of groups: channels d of a map.
    strides: Pixels between outputs.
    dilation: Pixels between neighbouring taps.
    varying: Whether the arrays differ between the devices of a caller's
      `jax.shard_map` that checks this.
    counted: Whether the number of images is known: a program that is exported
      may take any.
  """

  dtype: np.dtype
  depth: int
  strides: int
  dilation: int
  varying: bool = False
  counted: bool = True


def describe(
  maps: Sequence[Float[Array | jax.ShapeDtypeStruct, 'b h w _m d']],
  kernel: Float[Array | jax.ShapeDtypeStruct, 'kh kw m f'],
  strides: int,
  dilation: int,
) -> Problem:
  """The problem of these maps and this kernel."""
  return Problem(
    dtype=kernel.dtype,
    depth=maps[0].shape[4],
    strides=strides,
    dilation=dilation,
    varying=sharding.varies(maps, kernel),
    counted=isinstance(maps[0].shape[0], int),
  )
