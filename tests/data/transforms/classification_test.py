"""The transforms that a config describes."""

import ml_collections
import numpy as np
import pytest
from PIL import Image

from acmix_jax.data.transforms import classification, randaugment
from tests import fake_data


def apply(transform, image):
  example = {'image': fake_data.encode(image, 'png')}
  return transform(example, np.random.default_rng(0))['image']


def test_transforms_of_a_config():
  config = ml_collections.ConfigDict(
    {
      'image_size': 16,
      'eval_resize': 20,
      'crop_scale': (0.5, 1.0),
      'crop_ratio': (1.0, 1.0),
      'flip': 0.5,
      'interpolation': 'bicubic',
      'randaugment_operations': 0,
      'randaugment_magnitude': 7.0,
      'randaugment_std': 0.25,
      'mean': (0.485, 0.456, 0.406),
    }
  )
  image = fake_data.picture(5)
  train = classification.train_transform(config)
  assert apply(train, image).shape == (16, 16, 3)
  crop_and_flip = train.transforms
  config.randaugment_operations = 3
  *others, last = classification.train_transform(config).transforms
  assert tuple(others) == crop_and_flip
  assert last == randaugment.RandAugment(
    3, 7.0, 0.25, fill=(124, 116, 104), interpolation='bicubic'
  )
  resized = Image.fromarray(image).resize((25, 20), Image.BICUBIC)
  np.testing.assert_array_equal(
    apply(classification.eval_transform(config), image),
    np.array(resized)[2:18, 4:20],
  )
  config.eval_resize = 15
  with pytest.raises(ValueError, match='eval_resize=15 is less than'):
    classification.eval_transform(config)
