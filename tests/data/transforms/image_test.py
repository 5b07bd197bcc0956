"""Transforms against Pillow, and against torchvision's definitions."""

import math

import numpy as np
import pytest
from PIL import Image

from acmix_jax.data import transforms
from tests import fake_data

FILTERS = {'bilinear': Image.BILINEAR, 'bicubic': Image.BICUBIC}


def apply(transform, image, seed=0):
  example = {'image': image, 'label': 3}
  result = transform(example, np.random.default_rng(seed))
  assert result['label'] == 3
  assert result['image'].dtype == np.uint8
  return result['image']


@pytest.mark.parametrize('interpolation', FILTERS)
@pytest.mark.parametrize('size', [(64, 48), (37, 91), (50, 50), (20, 24)])
def test_eval_resize_is_that_of_pillow(interpolation, size):
  image = fake_data.picture(0, size)
  short = 28
  # torchvision: the longer side is int(short * longer / shorter).
  width, height = (int(short * side / min(size)) for side in size)
  expected = Image.fromarray(image).resize(
    (width, height), FILTERS[interpolation]
  )
  transform = transforms.ResizeShort(short, interpolation=interpolation)
  np.testing.assert_array_equal(apply(transform, image), np.array(expected))


@pytest.mark.parametrize('interpolation', FILTERS)
@pytest.mark.parametrize(
  'size', [(64, 48), (91, 37), (50, 50), (224, 7), (7, 223), (301, 1), (1, 300)]
)
def test_eval_crop_is_that_of_the_whole_resized_image(interpolation, size):
  pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
  width, height = (256 * side // min(size) for side in size)
  resized = Image.fromarray(pixels).resize(
    (width, height), FILTERS[interpolation]
  )
  top, left = round((height - 224) / 2), round((width - 224) / 2)
  transform = transforms.Compose(
    (transforms.ResizeShort(256, interpolation), transforms.CenterCrop(224))
  )
  np.testing.assert_array_equal(
    apply(transform, pixels),
    np.array(resized.crop((left, top, left + 224, top + 224))),
  )


@pytest.mark.parametrize('shape', [(1, 20_000), (60_001, 2), (3, 100_000)])
def test_size_of_a_long_image_is_bounded(shape):
  image = np.zeros((*shape, 3), np.uint8)
  resized = apply(transforms.ResizeShort(16), image)
  assert min(resized.shape[:2]) == 16 and max(resized.shape[:2]) <= 32 * 16
  crop = transforms.RandomResizedCrop(16)
  assert apply(crop, image).shape == (16, 16, 3)


def test_boxes_follow_the_middle_of_a_long_image():
  boxes = np.array([[0, 0, 100, 2], [50, 0, 52, 1]], np.float32)
  example = {'image': np.zeros((2, 102, 3), np.uint8), 'boxes': boxes}
  moved = transforms.ResizeShort(4)(example, None)
  assert moved['image'].shape == (4, 128, 3)
  np.testing.assert_array_equal(
    moved['boxes'], [[0, 0, 128, 4], [62, 0, 66, 2]]
  )


@pytest.mark.parametrize(
  'shape, top, left',
  [((12, 9), 2, 0), ((9, 13), 0, 2), ((11, 11), 1, 1), ((14, 12), 2, 2)],
)
def test_center_crop_is_placed_as_in_torchvision(shape, top, left):
  # int(round((side - size) / 2)): halves go to the even neighbour.
  image = fake_data.picture(1, shape[::-1])
  np.testing.assert_array_equal(
    apply(transforms.CenterCrop(9), image),
    image[top : top + 9, left : left + 9],
  )


def test_center_crop_of_a_smaller_image_is_an_error():
  with pytest.raises(ValueError, match='8x20 is smaller than size=9'):
    apply(transforms.CenterCrop(9), np.zeros((8, 20, 3), np.uint8))


def test_boxes_have_the_areas_and_ratios_asked_for():
  crop = transforms.RandomResizedCrop(8, scale=(0.1, 0.4), ratio=(0.5, 2.0))
  rng = np.random.default_rng(0)
  boxes = np.array([crop.sample_box(400, 400, rng) for _ in range(4000)])
  top, left, height, width = boxes.T
  assert (top >= 0).all() and (left >= 0).all()
  assert (top + height <= 400).all() and (left + width <= 400).all()
  area, log_ratio = height * width / 160_000, np.log(width / height)
  assert area.min() > 0.098 and area.max() < 0.402
  assert np.abs(log_ratio).max() < math.log(2.03)
  # Uniform on (a, b): mean (a + b) / 2, deviation (b - a) / sqrt(12).
  np.testing.assert_allclose(area.mean(), 0.25, atol=0.005)
  np.testing.assert_allclose(area.std(), 0.3 / math.sqrt(12), atol=0.004)
  np.testing.assert_allclose(log_ratio.mean(), 0, atol=0.03)
  np.testing.assert_allclose(
    log_ratio.std(), 2 * math.log(2) / math.sqrt(12), atol=0.02
  )
  # Corners are uniform over what the box leaves free.
  np.testing.assert_allclose((top / (400 - height)).mean(), 0.5, atol=0.02)
  np.testing.assert_allclose((left / (400 - width)).mean(), 0.5, atol=0.02)


@pytest.mark.parametrize(
  'shape, box',
  [
    ((10, 100), (0, 43, 10, 13)),  # Too wide: 10 x round(10 * 4 / 3).
    ((100, 10), (43, 0, 13, 10)),  # Too high: round(10 / (3 / 4)) x 10.
    ((20, 21), (0, 0, 20, 21)),  # No box of this area fits: all of it.
  ],
)
def test_box_falls_back_to_the_centre(shape, box):
  crop = transforms.RandomResizedCrop(8, scale=(1, 1))
  assert crop.sample_box(*shape, np.random.default_rng(0)) == box


def test_crop_of_the_whole_image_keeps_it():
  image = fake_data.picture(2, (32, 32))
  crop = transforms.RandomResizedCrop(32, scale=(1, 1), ratio=(1, 1))
  np.testing.assert_array_equal(apply(crop, image), image)


@pytest.mark.parametrize('interpolation', FILTERS)
def test_enlarging_crop_is_close_to_pillow(interpolation):
  image = fake_data.picture(3, (24, 24))
  crop = transforms.RandomResizedCrop(
    48, scale=(1, 1), ratio=(1, 1), interpolation=interpolation
  )
  expected = Image.fromarray(image).resize((48, 48), FILTERS[interpolation])
  # Enlarging needs no antialiasing; the bicubic kernels differ slightly.
  error = apply(crop, image).astype(int) - np.array(expected)
  assert np.abs(error).max() <= (1 if interpolation == 'bilinear' else 6)


def test_strong_reduction_averages_over_areas():
  image = np.zeros((64, 64, 3), np.uint8)
  image[::2, ::2] = 200
  crop = transforms.RandomResizedCrop(16, scale=(1, 1), ratio=(1, 1))
  np.testing.assert_array_equal(apply(crop, image), np.full((16, 16, 3), 50))


@pytest.mark.parametrize('probability, expected', [(0.0, 0), (1.0, 400)])
def test_flip_is_sure_at_the_ends(probability, expected):
  assert count_flips(probability) == expected


def test_flip_keeps_to_its_probability():
  assert 70 < count_flips(0.25) < 130


def count_flips(probability: float) -> int:
  image = fake_data.picture(4)
  flip = transforms.RandomFlip(probability)
  flips = 0
  for seed in range(400):
    result = apply(flip, image, seed)
    if not np.array_equal(result, image):
      np.testing.assert_array_equal(result, image[:, ::-1])
      flips += 1
  return flips


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'size': 0}, 'size=0'),
    ({'size': 8, 'scale': (0.5, 0.1)}, 'scale'),
    ({'size': 8, 'ratio': (0.0, 1.0)}, 'ratio'),
    ({'size': 8, 'scale': (0.1, math.nan)}, 'scale'),
    ({'size': 8, 'ratio': (0.5, math.inf)}, 'ratio'),
    ({'size': 8, 'interpolation': 'nearest'}, 'bilinear, bicubic'),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    transforms.RandomResizedCrop(**arguments)
