"""What all sources share, and the handwritten digits."""

import pickle

import numpy as np
import pytest
from sklearn import datasets

from tests import fake_data


def test_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(KeyError, match="mean 'imagenet2012'"):
    fake_data.make_source('imagenet')


def test_digits_hold_out_a_fifth_of_each_class():
  train, held_out = (
    fake_data.make_source('digits'),
    fake_data.make_source('digits', split='validation'),
  )
  assert (len(train), len(held_out)) == (1433, 364)
  names = [
    {source[i]['name'] for i in range(len(source))}
    for source in (train, held_out)
  ]
  assert len(names[0] | names[1]) == 1797
  labels = np.array([held_out[i]['label'] for i in range(len(held_out))])
  assert set(np.bincount(labels)) <= {35, 36, 37}


def test_digits_are_the_images_of_their_labels():
  train, digits = fake_data.make_source('digits'), datasets.load_digits()
  for i in (0, 100, 1000):
    example = train[i]
    index = int(example['name'].removeprefix('digits/'))
    assert example['label'] == digits.target[index]
    levels = example['image'] * (16 / 255)
    assert levels.shape == (8, 8, 3)
    for channel in range(3):
      np.testing.assert_allclose(
        levels[..., channel], digits.images[index], atol=0.04
      )


@pytest.mark.parametrize('name', ['digits', 'folder'])
def test_unknown_split_is_an_error(name, tmp_path):
  fake_data.write_class_folders(tmp_path, splits=())
  with pytest.raises(ValueError, match="'train' and 'validation', not 'x'"):
    fake_data.make_source(name, tmp_path, 'x')


@pytest.mark.parametrize('name', ['digits', 'folder'])
def test_sources_can_be_pickled(name, tmp_path):
  fake_data.write_class_folders(tmp_path)
  source = fake_data.make_source(name, tmp_path)
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == len(source)
  for key, value in source[0].items():
    np.testing.assert_array_equal(copy[0][key], value)
