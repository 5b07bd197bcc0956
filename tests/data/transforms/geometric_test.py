"""Arrays that move with the image, against OpenCV and each other."""

import cv2
import numpy as np
import pytest

from acmix_jax.data import transforms
from acmix_jax.data.transforms import geometric
from tests import fake_data

HEIGHT, WIDTH = 30, 44
TRANSFORMS = {
  'crop': transforms.RandomResizedCrop(24, scale=(0.3, 0.9)),
  'enlarging crop': transforms.RandomResizedCrop(64, scale=(0.1, 0.4)),
  'flip': transforms.RandomFlip(1.0),
  'no flip': transforms.RandomFlip(0.0),
  'shrink': transforms.ResizeShort(17),
  'enlarge': transforms.ResizeShort(71),
  'centre': transforms.CenterCrop(21),
}


def make_example(seed=0, count=6):
  """Boxes with whole corners, their masks, and labels of the pixels."""
  rng = np.random.default_rng(seed)
  corners = np.sort(rng.integers(0, (WIDTH, HEIGHT), (count, 2, 2)), axis=1)
  corners[:, 1] += 1
  masks = np.zeros((count, HEIGHT, WIDTH), bool)
  for mask, ((left, top), (right, bottom)) in zip(masks, corners, strict=True):
    mask[top:bottom, left:right] = True
  return {
    'image': fake_data.picture(seed, (WIDTH, HEIGHT)),
    'label_map': rng.integers(0, 150, (HEIGHT, WIDTH)).astype(np.int32),
    'masks': masks,
    'boxes': corners.reshape(count, 4).astype(np.float32),
    'labels': np.arange(count),
    'image_id': 7,
  }


def extents(masks):
  """x1 y1 x2 y2 of each mask; zeros where it is empty."""
  result = np.zeros((len(masks), 4))
  for row, mask in enumerate(masks):
    y, x = np.nonzero(mask)
    if len(y):
      result[row] = x.min(), y.min(), x.max() + 1, y.max() + 1
  return result


@pytest.mark.parametrize('name', TRANSFORMS)
@pytest.mark.parametrize('seed', range(5))
def test_boxes_are_the_extents_of_the_masks(name, seed):
  example = make_example(seed)
  moved = TRANSFORMS[name](example, np.random.default_rng(seed))
  assert moved['masks'].shape[1:] == moved['image'].shape[:2]
  assert moved['boxes'].dtype == np.float32
  expected = extents(moved['masks'])
  left = expected.any(axis=1)
  # A pixel belongs to the box that holds its upper left corner.
  corners = np.ceil(moved['boxes'] - 1e-4)
  np.testing.assert_array_equal(corners[left], expected[left])
  sides = corners[~left, 2:] - corners[~left, :2]
  assert (sides.min(axis=1) <= 0).all()
  for key in ('labels', 'image_id'):
    np.testing.assert_array_equal(moved[key], example[key])


@pytest.mark.parametrize('name', TRANSFORMS)
def test_label_map_moves_as_opencv_moves_an_image(name):
  example = make_example()
  transform = TRANSFORMS[name]
  moved = transform(example, np.random.default_rng(3))
  placement = transform.place(example, np.random.default_rng(3))
  top, left, height, width = placement.box
  crop = example['label_map'][top : top + height, left : left + width]
  expected = cv2.resize(
    crop.astype(np.float32),
    placement.size[::-1],
    interpolation=cv2.INTER_NEAREST,
  )
  if name == 'flip':
    expected = expected[:, ::-1]
  assert moved['label_map'].dtype == np.int32
  np.testing.assert_array_equal(moved['label_map'], expected)


def test_nearest_pixels_are_those_of_opencv_for_many_sizes():
  for old in range(1, 60):
    row = np.arange(old, dtype=np.float32)[None]
    for new in range(1, 90):
      expected = cv2.resize(row, (new, 1), interpolation=cv2.INTER_NEAREST)
      placement = geometric.Placement((0, 0, 1, old), (1, new))
      np.testing.assert_array_equal(placement.nearest(row), expected)


@pytest.mark.parametrize('name', ['flip', 'centre'])
def test_pixels_and_labels_keep_together(name):
  example = make_example()
  example['label_map'] = example['image'][..., 1].astype(np.int32)
  moved = TRANSFORMS[name](example, np.random.default_rng(0))
  np.testing.assert_array_equal(moved['label_map'], moved['image'][..., 1])


def test_flipping_twice_changes_nothing():
  example = make_example()
  flip, rng = TRANSFORMS['flip'], np.random.default_rng(0)
  once = flip(example, rng)
  twice = flip(once, rng)
  for key, value in example.items():
    np.testing.assert_array_equal(twice[key], value)
  np.testing.assert_array_equal(
    once['boxes'][:, 0], WIDTH - example['boxes'][:, 2]
  )


def test_box_outside_the_crop_keeps_its_row_and_is_empty():
  boxes = np.array([[0, 0, 5, 5], [12, 11, 60, 20]], np.float32)
  placement = geometric.Placement((10, 10, 10, 20), (20, 20), mirrored=True)
  np.testing.assert_array_equal(
    placement.move_boxes(boxes), [[20, 0, 20, 0], [0, 2, 18, 20]]
  )


@pytest.mark.parametrize('name', TRANSFORMS)
def test_no_boxes_stay_no_boxes(name):
  moved = TRANSFORMS[name](make_example(count=0), np.random.default_rng(0))
  assert moved['boxes'].shape == (0, 4)
  assert moved['masks'].shape == (0, *moved['image'].shape[:2])


@pytest.mark.parametrize('name', TRANSFORMS)
def test_array_that_would_be_left_behind_is_an_error(name):
  example = make_example() | {'depth': np.zeros((HEIGHT, WIDTH))}
  with pytest.raises(
    ValueError,
    match=rf"{type(TRANSFORMS[name]).__name__} .* 'depth', .*\(30, 44\)",
  ):
    TRANSFORMS[name](example, np.random.default_rng(0))


def test_randaugment_refuses_what_it_cannot_move():
  with pytest.raises(ValueError, match="RandAugment .* 'label_map'"):
    transforms.RandAugment()(make_example(), np.random.default_rng(0))
