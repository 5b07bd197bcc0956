"""Anchors: boxes of fixed shapes centred on the cells of feature maps.

Source: mmdetection 2.28 AnchorGenerator and anchor_inside_flags.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Shaped


class Anchors(NamedTuple):
  """Shapes of the anchors of a detector.

  Attributes:
    strides: Pixels of the image between cells, by level.
    scales: Square roots of the areas, in strides of the level.
    ratios: Heights over widths.
  """

  strides: tuple[int, ...]
  scales: tuple[float, ...]
  ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

  @property
  def per_cell(self) -> int:
    """Anchors of a cell: ratio by ratio, within a ratio scale by scale."""
    return len(self.ratios) * len(self.scales)


RETINANET = Anchors(
  (8, 16, 32, 64, 128), tuple(4 * 2 ** (i / 3) for i in (0, 1, 2))
)
RPN = Anchors((4, 8, 16, 32, 64), (8,))


def in_cell(anchors: Anchors, level: int) -> Float32[np.ndarray, 'n 4']:
  """Anchors of a cell of a level, about the point 0, 0.

  Widths are stride * scale / sqrt(ratio), heights stride * scale *
  sqrt(ratio), not rounded.
  """
  scales = np.asarray(anchors.scales, np.float32)
  roots = np.sqrt(np.asarray(anchors.ratios, np.float32))
  stride = np.float32(anchors.strides[level])
  w = (stride * (1 / roots)[:, None] * scales[None]).ravel()
  h = (stride * roots[:, None] * scales[None]).ravel()
  return np.stack([-w, -h, w, h], axis=-1) / 2


def on_maps(
  anchors: Anchors, sizes: Sequence[tuple[int, int]]
) -> list[Float32[Array, 'n 4']]:
  """Anchors of whole maps, by level.

  The cell in row y and column x is centred on (x * stride, y * stride).

  Args:
    anchors: Shapes.
    sizes: Height and width of the map of each level, in cells.

  Returns:
    Boxes [h * w * per_cell, 4] of each level, in the order of rows, columns,
    anchors of a cell.

  Raises:
    ValueError: there are not as many maps as strides.
  """
  maps = []
  for level, size in _levels(anchors, sizes):
    centres = jnp.tile(_cells(size) * anchors.strides[level], 2)
    boxes = centres[:, None] + in_cell(anchors, level)[None]
    maps.append(boxes.reshape(-1, 4))
  return maps


def within_padding(
  anchors: Anchors,
  sizes: Sequence[tuple[int, int]],
  padded: Shaped[Array | np.ndarray, 'b 2'],
) -> Bool[Array, 'b n']:
  """Whether the cell of an anchor is one of its image.

  Images of one batch have maps of one size; those of an image that was padded
  to `padded` alone end after ceil(padded / stride) cells. An anchor beyond
  them has no part in training.

  Args:
    anchors: Shapes.
    sizes: Height and width of the map of each level, in cells.
    padded: Height and width of each image with its own padding, in pixels: not
      those of the batch.

  Returns:
    Flags of the anchors of all levels, in the order of `on_maps`.
  """
  flags = []
  for level, size in _levels(anchors, sizes):
    starts = _cells(size)[None] * anchors.strides[level]
    x_y_limits = jnp.asarray(padded, starts.dtype)[:, None, ::-1]
    inside = jnp.all(starts < x_y_limits, axis=-1)
    flags.append(jnp.repeat(inside, anchors.per_cell, axis=1))
  return jnp.concatenate(flags, axis=1)


def within_image(
  boxes: Float[Array, 'n 4'],
  size: Shaped[Array | np.ndarray, 'b 2'],
  border: float = 0.0,
) -> Bool[Array, 'b n']:
  """Whether boxes lie in images that are widened by a border.

  x1, y1 >= -border, x2 < w + border and y2 < h + border. The cascade trains
  its region proposals on anchors within a border of 0.

  Args:
    boxes: Boxes.
    size: Height and width of each image without padding, in pixels.
    border: Pixels by which boxes may stand out.
  """
  x_y_limits = jnp.asarray(size, boxes.dtype)[:, None, ::-1] + border
  low = jnp.all(boxes[:, :2] >= -border, axis=-1)
  return low[None] & jnp.all(boxes[None, :, 2:] < x_y_limits, axis=-1)


def _levels(anchors, sizes):
  if len(sizes) != len(anchors.strides):
    raise ValueError(
      f'Anchors of {len(anchors.strides)} strides {anchors.strides} need as '
      f'many maps; given: {len(sizes)} of sizes {tuple(sizes)}.'
    )
  return enumerate(sizes)


def _cells(size):
  """Column and row of each cell, [h * w, 2]."""
  h, w = size
  y, x = jnp.divmod(jnp.arange(h * w), w)
  return jnp.stack([x, y], axis=-1).astype(jnp.float32)
