"""Masks of objects: drawn late, and small enough to send to a device."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

# Polygons or an RLE as pycocotools takes them, or bool or uint8 [h, w]; None:
# no pixels.
Segmentation = list[np.ndarray] | dict[str, Any] | np.ndarray | None


class Masks:
  """Stands in for an array of masks, bool [n, h, w], and draws none yet.

  `masks[..., rows, columns]`, `masks[..., columns]`, `masks[objects]` and
  `take` choose rows, columns and objects as of an array. So masks move with an
  image for nothing, and in the end each is drawn in the size of the file, by
  pycocotools, and read where it is needed: exactly the pixels of masks that are
  drawn first and then moved, as mmdetection does.

  Attributes:
    shape: n, h and w.
  """

  def __init__(
    self, segmentations: Sequence[Segmentation], height: int, width: int
  ):
    """Takes masks as they are in a file.

    Args:
      segmentations: of each object.
      height: height of the image in the file, in pixels.
      width: width of the image in the file, in pixels.
    """
    self._segmentations = list(segmentations)
    self._size = height, width
    self._rows, self._columns = np.arange(height), np.arange(width)

  @property
  def shape(self) -> tuple[int, int, int]:
    return len(self._segmentations), len(self._rows), len(self._columns)

  def __len__(self) -> int:
    return len(self._segmentations)

  def __getitem__(self, key: Any) -> 'Masks':
    chosen = Masks([], *self._size)
    chosen._segmentations = self._segmentations
    chosen._rows, chosen._columns = self._rows, self._columns
    if isinstance(key, tuple) and key[0] is Ellipsis and len(key) <= 3:
      chosen._columns = self._columns[key[-1]]
      if len(key) == 3:
        chosen._rows = self._rows[key[1]]
    else:
      objects = np.arange(len(self))[key]
      chosen._segmentations = [self._segmentations[k] for k in objects]
    return chosen

  def take(self, indices: np.ndarray, axis: int) -> 'Masks':
    """Chooses rows (`axis` -2) or columns (-1), perhaps one several times."""
    if axis == -1:
      return self[..., indices]
    return self[..., indices, :]

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    del copy
    drawn = np.zeros(self.shape, bool)
    for mask, segmentation in zip(drawn, self._segmentations, strict=True):
      if segmentation is not None:
        mask[:] = draw(segmentation, *self._size)[self._rows][:, self._columns]
    return drawn if dtype is None else drawn.astype(dtype)

  def pack(self, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts every mask out of the image and reduces it to `side` x `side` bits.

    The region of a mask is the rectangle of whole pixels around those of the
    object; beyond it the mask is 0. A region of less than `side` pixels in
    height is extended downwards to `side` pixels, a higher one is divided into
    `side` equal parts; the same holds for its width. The bit of a cell is the
    pixel at its centre, 0 beyond the image.

    So objects of up to `side` pixels stay as they are, and their mask targets
    are exact. Of larger ones single pixels at the outline of a target differ,
    of 28 x 28 with random stars in 800 x 1067: with 224 cells 0.2 %, with 112
    0.4 %, with 56 1 %.

    Returns:
      The masks, uint8 [n, side, side / 8], the highest bit being the leftmost
      pixel, and their regions, float32 [n, 4]: x1 y1 x2 y2 in pixels. Cell
      (i, j) of a region is the rectangle from (x1 + j * (x2 - x1) / side,
      y1 + i * (y2 - y1) / side) to that of (i + 1, j + 1).
    """
    bits = np.zeros((len(self), side, side // 8), np.uint8)
    regions = np.zeros((len(self), 4), np.float32)
    regions[:, 2:] = side
    for index, segmentation in enumerate(self._segmentations):
      if segmentation is None:
        continue
      drawn = draw(segmentation, *self._size)
      rows = _Axis.around(drawn.any(axis=1), self._rows, side)
      columns = _Axis.around(drawn.any(axis=0), self._columns, side)
      if rows is None or columns is None:
        continue
      # pycocotools lays masks out column by column.
      cut = drawn.T.take(columns.pixels, axis=0).take(rows.pixels, axis=1)
      cut[~columns.inside], cut[:, ~rows.inside] = 0, 0
      bits[index] = np.packbits(np.ascontiguousarray(cut.T), axis=1)
      regions[index] = columns.start, rows.start, columns.end, rows.end
    return bits, regions


@dataclasses.dataclass(frozen=True)
class _Axis:
  """The cells of a region along one axis.

  Attributes:
    start: where the first cell begins, in pixels of the image.
    end: where the last one ends.
    pixels: row or column of the file that each cell shows, int [side].
    inside: whether there is one, bool [side].
  """

  start: int
  end: int
  pixels: np.ndarray
  inside: np.ndarray

  @classmethod
  def around(
    cls, filled: np.ndarray, pixels: np.ndarray, side: int
  ) -> '_Axis | None':
    """The cells around all pixels that are filled; None: none is.

    Args:
      filled: which rows or columns of the file the mask has pixels in, bool.
      pixels: row or column of the file that each of the image shows, int.
      side: number of cells.
    """
    shown = np.flatnonzero(filled[pixels])
    if not len(shown):
      return None
    start, end = int(shown[0]), int(shown[-1]) + 1
    end = max(end, start + side)
    centres = (np.arange(side) + 0.5) * ((end - start) / side)
    cells = start + centres.astype(int)
    inside = cells < len(pixels)
    return cls(start, end, pixels[np.where(inside, cells, 0)], inside)


def draw(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
  """Draws polygons or an RLE by the rules of pycocotools, uint8 [h, w]."""
  if isinstance(segmentation, np.ndarray):
    return segmentation.astype(np.uint8, copy=False)
  if isinstance(segmentation, list):
    parts = coco_mask.frPyObjects(segmentation, height, width)
    segmentation = coco_mask.merge(parts)
  return coco_mask.decode(segmentation)
