"""The scenes: what their labels say is what their pixels show."""

import pickle

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from acmix_jax.data.sources import scenes
from tests import fake_data

_COUNT = 25
_SPLITS = ('train', 'validation')


@pytest.fixture(scope='module', params=_SPLITS)
def examples(request):
  source = scenes.Scenes(request.param)
  return [source[index] for index in range(_COUNT)]


def _photographs():
  """Both photographs and their mirror images."""
  for photograph in datasets.load_sample_images().images:
    yield photograph
    yield np.ascontiguousarray(photograph[:, ::-1])


def _find_background(example):
  """(number of the photograph, left, top) whose pixels no mask covers."""
  outside = (~example['masks'].any(axis=0)).astype(np.float32)
  outside = np.repeat(outside[..., None], 3, axis=2)
  image = example['image']
  height, width = image.shape[:2]
  for number, photograph in enumerate(_photographs()):
    # The correlation rounds: the best places are looked at exactly.
    differences = cv2.matchTemplate(
      photograph.astype(np.float32),
      image.astype(np.float32),
      cv2.TM_SQDIFF,
      mask=outside,
    )
    top, left = np.unravel_index(differences.argmin(), differences.shape)
    crop = photograph[top : top + height, left : left + width]
    if np.array_equal(crop[outside > 0], image[outside > 0]):
      return number, left, top
  raise AssertionError(f'{example["name"]} is on no photograph.')


def test_pixels_outside_the_masks_are_those_of_the_photograph(examples):
  found = set()
  for example in examples[:4]:
    number, left, top = _find_background(example)
    found.add((number, left, top))
    photograph = list(_photographs())[number].astype(int)
    height, width = example['image'].shape[:2]
    crop = photograph[top : top + height, left : left + width]
    # Inside they stand out.
    for mask in example['masks']:
      shift = (example['image'] - crop)[mask].mean(axis=0)
      assert np.linalg.norm(shift) > 40
  assert len(found) == 4


def test_masks_share_no_pixel_and_make_the_label_map(examples):
  for example in examples:
    masks, labels = example['masks'], example['labels']
    assert masks.dtype == bool and labels.dtype == np.int32
    assert masks.sum(axis=0).max() == 1
    label_map = np.zeros(masks.shape[1:], np.uint8)
    for mask, label in zip(masks, labels, strict=True):
      label_map[mask] = 1 + label
    np.testing.assert_array_equal(example['label_map'], label_map)
    assert example['label_map'].dtype == np.uint8
    assert set(labels) <= set(range(10))


def test_boxes_are_tight_around_the_masks(examples):
  for example in examples:
    boxes = example['boxes']
    assert boxes.dtype == np.float32
    assert len(boxes) == len(example['masks']) >= 1
    for (left, top, right, bottom), mask in zip(
      boxes.astype(int), example['masks'], strict=True
    ):
      inside = np.zeros_like(mask)
      inside[top:bottom, left:right] = True
      assert not mask[~inside].any()
      for edge in (
        mask[top, left:right],
        mask[bottom - 1, left:right],
        mask[top:bottom, left],
        mask[top:bottom, right - 1],
      ):
        assert edge.any()


def _draw_alone(source, monkeypatch, digit):
  """A scene with the one object of a digit, large and upright."""
  monkeypatch.setattr(scenes, '_OBJECTS', (1, 1))
  monkeypatch.setattr(scenes, '_SIDES', (48.0, 48.0))
  monkeypatch.setattr(scenes, '_DEGREES', 0.0)
  source._levels = source._levels[digit : digit + 1]
  source._labels = source._labels[digit : digit + 1]
  return source[0]


@pytest.mark.parametrize('digit', range(0, 100, 9))
def test_masks_have_the_form_of_the_digit(digit, monkeypatch):
  digits = datasets.load_digits()
  held_out = np.zeros(len(digits.target), bool)
  for label in range(10):
    held_out[np.flatnonzero(digits.target == label)[::5]] = True
  index = np.flatnonzero(~held_out)[digit]

  example = _draw_alone(scenes.Scenes('train'), monkeypatch, digit)

  assert example['labels'].tolist() == [digits.target[index]]
  # Its 8 x 8 levels, with a margin, in cells of 6 x 6 pixels.
  levels = np.pad(digits.images[index] / digits.images[index].max(), 1)
  enlarged = Image.fromarray(levels.astype(np.float32)).resize(
    (60, 60), Image.Resampling.BICUBIC
  )
  expected = np.asarray(enlarged) >= 0.4
  left, top, right, bottom = example['boxes'][0].astype(int)
  mask = example['masks'][0][top:bottom, left:right].astype(np.float32)
  # Wherever the mask fits best.
  overlap = cv2.matchTemplate(
    np.pad(expected, 3).astype(np.float32), mask, cv2.TM_CCORR
  ).max()
  assert overlap > 0.93 * (expected.sum() + mask.sum() - overlap)


@pytest.mark.parametrize('index', range(4))
def test_later_objects_hide_earlier_ones_but_not_much(index, monkeypatch):
  whole = []
  for count in range(1, 15):
    # The same scene up to its object number `count`.
    monkeypatch.setattr(scenes, '_OBJECTS', (count, count))
    example = scenes.Scenes('train')[index]
    if len(example['masks']) > len(whole):
      whole.append(example['masks'][-1])
  assert 4 < len(whole) == len(example['masks'])
  hidden = np.zeros_like(whole[0])
  for full, mask in zip(whole[::-1], example['masks'][::-1], strict=True):
    np.testing.assert_array_equal(mask, full & ~hidden)
    assert mask.sum() >= 0.8 * full.sum()
    hidden |= full
  assert any(
    a.sum() < b.sum() for a, b in zip(example['masks'], whole, strict=True)
  )


def test_splits_share_neither_digits_nor_pixels():
  train, held_out = (scenes.Scenes(split) for split in _SPLITS)
  digits = [
    {levels.tobytes() for levels in source._levels}
    for source in (train, held_out)
  ]
  assert not digits[0] & digits[1]
  assert [len(train._levels), len(held_out._levels)] == [1433, 364]
  for whole, left, right in zip(
    datasets.load_sample_images().images,
    train._photographs,
    held_out._photographs,
    strict=True,
  ):
    joined = np.concatenate([left, right], axis=1)
    np.testing.assert_array_equal(joined, whole)


def _same(first, second):
  assert first.keys() == second.keys()
  return all(np.array_equal(first[key], second[key]) for key in first)


def test_a_scene_is_a_function_of_seed_split_and_index():
  source = scenes.Scenes('train')
  copy = pickle.loads(pickle.dumps(source))
  third = source[3]
  assert _same(third, copy[3])
  assert _same(third, scenes.Scenes('train')[3])
  images = [
    third['image'],
    source[4]['image'],
    scenes.Scenes('train', seed=1)[3]['image'],
    scenes.Scenes('validation')[3]['image'],
  ]
  assert len({image.tobytes() for image in images}) == len(images)


def test_blank_has_the_keys_of_an_example():
  source = scenes.Scenes('validation')
  example, blank = source[0], source.blank(0)
  assert blank.keys() == example.keys() - {'name'}
  for key, value in blank.items():
    assert value.dtype == example[key].dtype
    assert value.ndim == example[key].ndim
  assert blank['image'].shape == example['image'].shape
  assert np.all(blank['label_map'] == 255)
  assert source.sizes[0].tolist() == list(example['image'].shape[:2])


def test_what_is_not_there_is_refused():
  with pytest.raises(ValueError, match="'scenes' has the splits 'train'"):
    fake_data.make_source('scenes', split='test')
  source = fake_data.make_source('scenes', split='validation')
  assert (len(source), source.num_classes) == (200, 11)
  with pytest.raises(IndexError, match='Scene 200 of 200'):
    source[200]
