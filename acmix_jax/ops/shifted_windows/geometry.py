"""What the implementations of window attention are told of a map."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Shaped

from acmix_jax.ops import sharding


class Problem(NamedTuple):
  """Static description of a call.

  Attributes:
    padded: Rows and columns of the map, whole windows.
    size: Those of them that are no padding.
    shift: Rows and columns the map was rolled by, up and left.
    window_size: Side of a window.
    heads: Number of heads.
    depth: Channels of a head.
    dtype: Dtype of queries, keys and values.
    counted: Whether the number of images is known: a program that is exported
      may take any.
    varying: Whether the arrays differ between the devices of a caller's
      `jax.shard_map` that checks this.
  """

  padded: tuple[int, int]
  size: tuple[int, int]
  shift: int
  window_size: int
  heads: int
  depth: int
  dtype: np.dtype
  counted: bool = True
  varying: bool = False

  @property
  def windows(self) -> tuple[int, int]:
    """Rows and columns of windows."""
    rows, columns = (side // self.window_size for side in self.padded)
    return rows, columns

  @property
  def regions(self) -> Int32[np.ndarray, 'h w'] | None:
    """See `shift_regions`."""
    return shift_regions(*self.size, self.window_size, self.shift)


def describe(
  maps: Float[Array | jax.ShapeDtypeStruct, 'b h w m d'],
  bias: Float[Array | jax.ShapeDtypeStruct, 'n t t'],
  window_size: int,
  size: tuple[int, int],
  shift: int,
) -> Problem:
  """The problem of these maps."""
  return Problem(
    padded=maps.shape[1:3],
    size=size,
    shift=shift,
    window_size=window_size,
    heads=bias.shape[0],
    depth=maps.shape[4],
    dtype=maps.dtype,
    counted=isinstance(maps.shape[0], int),
    varying=sharding.varies(maps, bias),
  )


def check_whole(name: str, height: int, width: int, window_size: int) -> None:
  """Raises ValueError unless a map is made of whole windows."""
  if height % window_size or width % window_size:
    raise ValueError(
      f'{name}: a {height}x{width} map is not made of whole windows of '
      f'window_size={window_size}; nn.ShiftedWindows pads it to them.'
    )


def cut(
  x: Shaped[Array | np.ndarray, 'b h w *c'], window_size: int
) -> Shaped[Array | np.ndarray, 'b windows t *c']:
  """The windows of a map."""
  b, h, w, *channels = x.shape
  side = window_size
  x = x.reshape(b, h // side, side, w // side, side, *channels)
  return x.swapaxes(2, 3).reshape(b, -1, side**2, *channels)


def shift_regions(
  height: int, width: int, window_size: int, shift: int
) -> Int32[np.ndarray, 'h w'] | None:
  """Which pixels of a padded and rolled map may attend to one another.

  Args:
    height: Rows of the map before it is padded to whole windows.
    width: Columns before padding.
    window_size: Side of a window.
    shift: Rows and columns the padded map was rolled by, up and left.

  Returns:
    Numbers of the padded map's pixels, or None where all is one region: 0 for
    pixels that kept their place among their neighbours, 1 to 3 for those rolled
    from an opposite border, -1 for padding.
  """
  (inside_y, rolled_y), (inside_x, rolled_x) = (
    _line(size, window_size, shift) for size in (height, width)
  )
  if not shift and inside_y.all() and inside_x.all():
    return None
  regions = 2 * rolled_y[:, None] + rolled_x
  inside = inside_y[:, None] & inside_x
  return np.where(inside, regions, -1).astype(np.int32)


def valid_pixels(
  height: int, width: int, window_size: int, shift: int
) -> Bool[np.ndarray, 'h w'] | None:
  """Which pixels of a padded and rolled map are not padding; None: all.

  Args: those of `shift_regions`.
  """
  regions = shift_regions(height, width, window_size, shift)
  if regions is None or regions.min() >= 0:
    return None
  return regions >= 0


def _line(size: int, window_size: int, shift: int):
  """Which pixels of a padded and rolled line are not padding; are rolled."""
  length = -(-size // window_size) * window_size
  source = np.roll(np.arange(length), -shift)
  return source < size, source < shift
