"""Masks that are drawn late, and what packing changes of mask targets."""

import pathlib

import numpy as np
import pytest

from acmix_jax.data.transforms import geometric, masks

FIXTURES = pathlib.Path(__file__).parents[2] / 'fixtures' / 'detection'
HEIGHT, WIDTH = 60, 90


def polygon(seed, height=HEIGHT, width=WIDTH):
  """A star of random corners somewhere in an image."""
  rng = np.random.default_rng(seed)
  angles = np.sort(rng.uniform(0, 2 * np.pi, 25))
  radius = rng.uniform(0.5, 1, 25)
  corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
  middle = rng.uniform(0.3, 0.7, 2) * (width, height)
  return [(middle + corners * (width / 4, height / 4)).ravel()]


PLACEMENTS = (
  geometric.Placement((0, 0, HEIGHT, WIDTH), (95, 143)),
  geometric.Placement((0, 0, 95, 143), (95, 143), mirrored=True),
  geometric.Placement((20, 40, 50, 77), (50, 77)),
  geometric.Placement((0, 0, 50, 77), (61, 94)),
)


def test_moved_masks_are_those_drawn_first():
  shapes = [polygon(0), polygon(1), None]
  late = masks.Masks(shapes, HEIGHT, WIDTH)
  early = np.asarray(late)
  assert early.dtype == bool and early[:2].any(axis=(1, 2)).all()
  assert not early[2].any()
  for placement in PLACEMENTS:
    late, early = placement.nearest(late), placement.nearest(early)
    assert late.shape == early.shape
    np.testing.assert_array_equal(np.asarray(late), early)
  kept = np.array([1, 0])
  np.testing.assert_array_equal(np.asarray(late[kept]), early[kept])


def test_drawn_masks_move_as_polygons_do():
  drawn = np.asarray(masks.Masks([polygon(2)], HEIGHT, WIDTH))
  first, second = (
    masks.Masks(shapes, HEIGHT, WIDTH) for shapes in ([polygon(2)], list(drawn))
  )
  for placement in PLACEMENTS:
    first, second = placement.nearest(first), placement.nearest(second)
  for one, other in zip(first.pack(32), second.pack(32), strict=True):
    np.testing.assert_array_equal(one, other)


def weights(start, end, size, first=0, last=None):
  """What pixels contribute to 28 parts of a side; RoIAlign, adaptive.

  Places are limited to those from `first` to `last`, the ends of the image.
  """
  last = size - 1 if last is None else last
  start, end = np.float32(start - 0.5), np.float32(end - 0.5)
  samples = int(np.ceil((end - start) / 28))
  places = (np.arange(28 * samples) + 0.5) / (28 * samples)
  places = start + places.astype(np.float32) * (end - start)
  places = np.clip(places, first, last)
  hat = np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)
  return hat.reshape(28, samples, size).mean(axis=1)


def target(mask, box):
  """The mask target of a box, by the formula, before the threshold."""
  rows = weights(box[1], box[3], mask.shape[0])
  columns = weights(box[0], box[2], mask.shape[1])
  return rows @ mask @ columns.T


def packed_target(bits, region, box, size):
  """The same from a packed mask: box and image in cells of the region."""
  cell = (region[2:] - region[:2]) / len(bits)
  starts, ends = (box.reshape(2, 2) - region[:2]) / cell
  first = -region[:2] / cell
  last = (np.array(size[::-1]) - region[:2]) / cell - 1
  columns, rows = (
    weights(starts[k], ends[k], len(bits), first[k], last[k]) for k in (0, 1)
  )
  return rows @ np.unpackbits(bits, axis=-1) @ columns.T


def boxes_around(mask, count, rng, size):
  y, x = np.nonzero(mask)
  box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float32)
  sides = np.tile(box[2:] - box[:2], 2)
  moved = box + rng.uniform(-0.2, 0.2, (count, 4)) * sides
  return np.clip(moved, 0, np.tile(size[::-1], 2)).astype(np.float32)


@pytest.mark.parametrize('edge', [False, True])
def test_targets_of_small_masks_are_exact(edge):
  # Padded to 96 x 96: the last column of the image is no border, the last row
  # is one where the height is a multiple of 32.
  size = (64 if edge else 60, 90)
  rng = np.random.default_rng(0)
  shapes = [polygon(seed, *size) for seed in range(4)]
  if edge:  # Touches all four sides.
    shapes = [[np.array([0, 0, 90, 5, 88, 64, 0, 64.0])]]
  late = masks.Masks(shapes, *size)
  padded = np.zeros((len(late), 64, 96))
  padded[:, : size[0], : size[1]] = np.asarray(late)
  bits, regions = late.pack(96)
  for mask, packed, region in zip(padded, bits, regions, strict=True):
    for box in boxes_around(mask, 8, rng, size):
      np.testing.assert_allclose(
        packed_target(packed, region, box, mask.shape),
        target(mask, box),
        atol=2e-5,
      )


def test_targets_of_large_masks_differ_in_few_pixels():
  placement = geometric.Placement((0, 0, 240, 320), (800, 1067))
  rng = np.random.default_rng(0)
  shapes = [polygon(seed, 240, 320) for seed in range(4)]
  late = placement.nearest(masks.Masks(shapes, 240, 320))
  wrong = {56: [], 224: []}
  for mask, shape in zip(np.asarray(late), range(len(late)), strict=True):
    (box,) = boxes_around(mask, 1, rng, (800, 1067))
    exact = target(mask, box) >= 0.5
    for side, shares in wrong.items():
      bits, regions = late[[shape]].pack(side)
      assert (regions[0, 2:] - regions[0, :2]).max() > side
      packed = packed_target(bits[0], regions[0], box, mask.shape) >= 0.5
      shares.append(np.mean(exact != packed))
  assert np.mean(wrong[224]) < 0.004
  assert np.mean(wrong[224]) < np.mean(wrong[56]) < 0.02


def test_cropped_away_mask_is_empty():
  left = geometric.Placement((0, 0, 8, 8), (8, 8))
  shapes = [polygon(0), None]
  bits, regions = left.nearest(masks.Masks(shapes, HEIGHT, WIDTH)).pack(16)
  assert not bits.any()
  np.testing.assert_array_equal(regions, [[0, 0, 16, 16]] * 2)
