"""Masks of detections in the size of the image, as run lengths.

A detector predicts each mask on a small grid that covers its box. It is resized
to the box on the host, one object at a time, and kept as run lengths: masks of
all detections of an image would take up to 100 times its pixels.
"""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def paste(
  probabilities: np.ndarray,
  boxes: np.ndarray,
  size: tuple[int, int],
  threshold: float = 0.5,
) -> list[dict[str, Any]]:
  """Masks of an image's detections.

  A pixel belongs to the object where the resized grid, see `resize`, is at
  least the threshold. Source: `FCNMaskHead.get_seg_masks` of mmdetection, whose
  masks differ in the pixels that equal the threshold up to rounding.

  Args:
    probabilities: float [n, m, m], values of the grid's cells.
    boxes: float [n, 4], x1 y1 x2 y2 in pixels of the image.
    size: height and width of the image.
    threshold: least probability of a pixel of the object.

  Returns:
    RLEs as pycocotools encodes them: {'size': [h, w], 'counts': bytes}.
  """
  return [
    _to_rle(*resize(grid, box, size), size, threshold)
    for grid, box in zip(probabilities, boxes, strict=True)
  ]


def resize(
  grid: np.ndarray, box: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, int, int]:
  """Resizes a grid to its box, bilinear between the centres of its cells.

  Outside of the grid the values are 0: they fade over half a cell beyond the
  box. A pixel takes the value at its centre.

  Args:
    grid: float [m, m].
    box: x1 y1 x2 y2 in pixels of the image.
    size: height and width of the image.

  Returns:
    float32 [h, w], the part of the image outside which all values are 0, and
    its top and left.
  """
  grid = np.asarray(grid, np.float32)
  x1, y1, x2, y2 = np.asarray(box, np.float32)
  rows, top = _weights(y1, y2, size[0], grid.shape[0])
  columns, left = _weights(x1, x2, size[1], grid.shape[1])
  return rows @ grid @ columns.T, top, left


def _weights(
  start: np.float32, end: np.float32, size: int, cells: int
) -> tuple[np.ndarray, int]:
  """What each cell contributes to each pixel of one axis, float32 [k, cells].

  Returns:
    The weights, and the first of the k pixels that any contributes to.
  """
  if not end > start:
    return np.zeros((0, cells), np.float32), 0
  fade = (end - start) / cells
  first = int(np.clip(np.floor(start - fade), 0, size))
  last = int(np.clip(np.ceil(end + fade), first, size))
  centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
  places = (centres - start) / (end - start) * cells - np.float32(0.5)
  distances = np.abs(places[:, None] - np.arange(cells, dtype=np.float32))
  return np.maximum(1 - distances, 0), first


def _to_rle(
  values: np.ndarray,
  top: int,
  left: int,
  size: tuple[int, int],
  threshold: float,
) -> dict[str, Any]:
  """Run lengths of the pixels at or above the threshold, column by column."""
  height, width = size
  steps = np.zeros((values.shape[1], values.shape[0] + 2), np.int8)
  steps[:, 1:-1] = np.greater_equal(values.T, threshold)
  steps = np.diff(steps, axis=1)
  column, row = np.nonzero(steps > 0)
  starts = (left + column) * height + top + row
  column, row = np.nonzero(steps < 0)
  ends = (left + column) * height + top + row
  # A run may go on at the top of the next column.
  apart = ends[:-1] != starts[1:]
  starts = starts[np.append(True, apart)[: len(starts)]]
  ends = ends[np.append(apart, True)[: len(ends)]]
  bounds = np.zeros(2 * len(starts) + 2, np.int64)
  bounds[1:-1:2], bounds[2:-1:2], bounds[-1] = starts, ends, height * width
  counts = np.diff(bounds)
  if not counts[-1]:
    counts = counts[:-1]
  rle = {'size': [height, width], 'counts': counts}
  return coco_mask.frPyObjects(rle, height, width)
