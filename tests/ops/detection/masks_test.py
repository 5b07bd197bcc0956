"""Mask targets against mmdetection's, from whole and from cut bitmaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import masks
from tests.ops.detection import fixtures

CASE = fixtures.group('mask_target')
BITMAPS = fixtures.bits(CASE['gt_masks'], 80)
TARGETS = fixtures.bits(CASE['targets'], 28)
SIZES = np.array([[64, 80]])
WHOLE = np.tile(np.float32([0, 0, 80, 64]), (1, 3, 1))


@jax.jit
def targets_of(bitmaps, regions, proposals, index):
  return masks.mask_targets(bitmaps, regions, proposals, index, SIZES)


def fixture_targets(bitmaps, regions):
  proposals, index = CASE['proposals'][None], CASE['inds'][None]
  return targets_of(bitmaps[None], regions, proposals, index)[0]


def shares(bitmap, box, size):
  """Means over the 28 x 28 bins, in float64 and sample by sample."""
  weights = []
  for low, high, pixels in zip(box[:2], box[2:], size[::-1], strict=True):
    low, high = np.clip([low, high], 0, pixels).astype(np.float64)
    count = int(np.ceil((high - low) / 28))
    samples = (
      low
      - 0.5
      + (high - low) * (np.arange(28 * count) + 0.5) / (28 * max(count, 1))
    )
    samples = np.clip(samples, 0, pixels - 1)[:, None] - np.arange(pixels)
    hats = np.maximum(1 - np.abs(samples), 0).reshape(28, count, pixels)
    weights.append(hats.sum(1) / max(count, 1))
  return weights[1] @ bitmap @ weights[0].T


def test_targets_are_those_of_mmdetection():
  """But for pixels whose share is .5 up to rounding."""
  actual = fixture_targets(BITMAPS, WHOLE)
  unequal = np.argwhere(actual != TARGETS)
  assert len(unequal) <= 5 and TARGETS.any()
  for roi, row, column in unequal:
    bitmap = BITMAPS[CASE['inds'][roi]]
    exact = shares(bitmap, CASE['proposals'][roi], (64, 80))
    assert abs(exact[row, column] - 0.5) < 1e-6


def test_targets_of_a_detector_are_those_of_mmdetection():
  arrays = fixtures.group('mask_rcnn', fixtures.DETECTORS)
  expected = fixtures.bits(arrays['stage0/mask_targets'], 28)
  # Both images in bitmaps of 96 x 128, with the padding of each.
  bitmaps = np.zeros((2, 6, 96, 128), bool)
  regions = np.tile(np.float32([0, 0, 128, 96]), (2, 6, 1))
  boxes, index = np.zeros((2, 9, 4), np.float32), np.zeros((2, 9), np.int32)
  wanted, there = np.zeros((2, 9, 28, 28), bool), np.zeros((2, 9), bool)
  for image, (h, w) in enumerate(fixtures.PADDED_SIZES[:2]):
    masks_of_image = fixtures.bits(arrays[f'gt/{image}/masks'], w)
    bitmaps[image, : len(masks_of_image), :h, :w] = masks_of_image
    positives = arrays[f'stage0/sampling/{image}/pos_assigned_gt_inds']
    count, rois = len(positives), arrays['stage0/rois']
    index[image, :count] = positives
    boxes[image, :count] = rois[rois[:, 0] == image, 1:][:count]
    wanted[image, :count], expected = expected[:count], expected[count:]
    there[image, :count] = True
  assert len(expected) == 0 and there.sum() == 10
  actual = jax.jit(masks.mask_targets)(
    bitmaps, regions, boxes, index, fixtures.PADDED_SIZES[:2]
  )
  assert np.count_nonzero(actual != wanted) <= 3


def cut(bitmap):
  """A bitmap's rows and columns with pixels, and their region."""
  rows, columns = (np.flatnonzero(bitmap.any(axis)) for axis in (1, 0))
  top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
  return bitmap[top:bottom, left:right], (left, top, right, bottom)


def test_cut_bitmaps_give_the_same_targets():
  bitmaps, regions = (
    np.zeros((3, 64, 80), bool),
    np.zeros((1, 3, 4), np.float32),
  )
  for i, bitmap in enumerate(BITMAPS):
    part, (left, top, _, _) = cut(bitmap)
    bitmaps[i, : part.shape[0], : part.shape[1]] = part
    regions[0, i] = left, top, left + 80, top + 64
    assert part.size < bitmap.size
  np.testing.assert_array_equal(
    fixture_targets(bitmaps, regions), fixture_targets(BITMAPS, WHOLE)
  )


def test_coarse_bitmaps_move_the_border_alone():
  """Bitmaps of half the pixels are off where the mask ends, not elsewhere."""
  halves = BITMAPS.reshape(3, 32, 2, 40, 2).mean((2, 4)) >= 0.5
  differs = fixture_targets(halves, WHOLE) != TARGETS
  assert 0 < differs.mean() < 0.05
  for roi, row, column in np.argwhere(differs):
    bitmap = BITMAPS[CASE['inds'][roi]]
    near = shares(bitmap, CASE['proposals'][roi], (64, 80))
    around = near[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5]
    assert around.min() < 0.5 <= around.max() + 0.5


@pytest.mark.parametrize('box', [(5, 5, 5, 30), (20, 20, 10, 10), (0, 0, 0, 0)])
def test_empty_boxes_have_empty_targets(box):
  boxes = jnp.asarray(box, jnp.float32).reshape(1, 1, 4)
  index = jnp.zeros((1, 1), jnp.int32)
  full = jnp.ones((1, 3, 64, 80), bool)
  assert not np.any(targets_of(full, WHOLE, boxes, index))
