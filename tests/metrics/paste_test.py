"""Pasted masks against pixels computed one by one."""

import numpy as np
from pycocotools import mask as coco_mask

from acmix_jax.metrics import paste


def slow(grid, box, size):
  """The formula of mmdetection, pixel by pixel."""
  x1, y1, x2, y2 = box
  side = len(grid)
  padded = np.pad(grid, 1)
  values = np.zeros(size)
  for row in range(size[0]):
    for column in range(size[1]):
      y = (row + 0.5 - y1) / (y2 - y1) * side - 0.5
      x = (column + 0.5 - x1) / (x2 - x1) * side - 0.5
      if not (-1 < y < side and -1 < x < side):
        continue
      i, j = int(np.floor(y)), int(np.floor(x))
      part = padded[i + 1 : i + 3, j + 1 : j + 3]
      values[row, column] = (1 - y + i, y - i) @ part @ (1 - x + j, x - j)
  return values


BOXES = np.array(
  [
    (3.2, 4.1, 17.9, 20.0),
    (-6.5, -3.25, 9.0, 30.0),  # Beyond the top left corner.
    (10.0, 12.0, 40.0, 29.5),  # Beyond the bottom right corner.
    (0.0, 0.0, 30.0, 24.0),  # All of the image.
    (8.2, 8.3, 8.9, 9.1),  # Less than a pixel.
  ],
  np.float32,
)
SIZE = 24, 30


def test_values_and_run_lengths():
  rng = np.random.default_rng(0)
  grids = rng.random((len(BOXES), 7, 7)).astype(np.float32)
  grids[3] = 1.0  # Runs that go on in the next column.
  rles = paste.paste(grids, BOXES, SIZE)
  for grid, box, rle in zip(grids, BOXES, rles, strict=True):
    expected = slow(grid.astype(float), box.astype(float), SIZE)
    part, top, left = paste.resize(grid, box, SIZE)
    values = np.zeros(SIZE)
    values[top : top + part.shape[0], left : left + part.shape[1]] = part
    np.testing.assert_allclose(values, expected, atol=2e-5)
    mask = np.asfortranarray(expected >= 0.5).astype(np.uint8)
    assert rle == coco_mask.encode(np.asfortranarray(mask))


def test_empty_boxes_and_boxes_elsewhere_give_empty_masks():
  boxes = np.array([(5, 5, 5, 9), (9, 9, 4, 4), (90, 90, 99, 99)], np.float32)
  rles = paste.paste(np.ones((3, 7, 7)), boxes, SIZE)
  assert [int(coco_mask.area(rle)) for rle in rles] == [0, 0, 0]
  empty = coco_mask.encode(np.zeros(SIZE, np.uint8, order='F'))
  assert rles == [empty] * 3
