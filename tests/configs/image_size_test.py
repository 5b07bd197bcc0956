"""What follows `data.image_size` where it is set alone."""

import importlib

import ml_collections
import numpy as np
import pytest

from acmix_jax.data.transforms import classification
from acmix_jax.tools import config_file
from tests import fake_data


def from_flags(name: str, *overrides: str) -> ml_collections.ConfigDict:
  """A config, or 'NAME:ARGUMENT', as the command line sets it."""
  return config_file.load(name, [f'--config.{x}' for x in overrides])


@pytest.mark.parametrize('size', [224, 384, 128, 64, 32])
def test_same_share_of_the_picture_is_evaluated_at_any_size(size):
  config = importlib.import_module('configs.resnet26').get_config()
  config.data.image_size = size
  assert config.data.eval_resize == size * 256 // 224
  ramp = np.broadcast_to(np.linspace(0, 255, 400)[:, None, None], (400, 400, 3))
  example = {'image': fake_data.encode(ramp.astype(np.uint8), 'png')}
  transform = classification.eval_transform(config.data)
  levels = transform(example, np.random.default_rng(0))['image'] / 255
  assert 0.85 < levels.max() - levels.min() < 0.89


def test_image_size_alone_sets_what_follows_and_can_be_overridden():
  config = from_flags('pvt_tiny', 'data.image_size=64')
  assert (config.data.eval_resize, config.model.image_size) == (73, 64)
  config = from_flags(
    'pvt_tiny',
    'data.image_size=64',
    'data.eval_resize=64',
    'model.image_size=224',
  )
  assert (config.data.image_size, config.data.eval_resize) == (64, 64)
  assert config.model.image_size == 224
  config = from_flags('digits_acmix', 'data.image_size=16')
  assert config.data.eval_resize == 16
