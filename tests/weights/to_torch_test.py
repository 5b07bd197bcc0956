"""Variables under official names, and back."""

import itertools
import re

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from acmix_jax.weights import names
from tests.fixtures import detectors, official

_BUFFERS = ('num_batches_tracked', 'relative_position_index', 'attn_mask')
# Blocks beyond the first of a stage, in Swin beyond the second.
_LATER = re.compile(r'.*((layer|block)\d\.[1-9]|blocks\.[2-9])\.')
# One path alone in the first blocks, as of a collapsed network.
_ALONE = (('stage1_0', 'attention'), ('stage2_0', 'shift_convolution'))
# Some without an official state dict.
_MODELS = {
  'resnet26_acmix': dict(stage_sizes=(1, 1, 1), block_operators=_ALONE),
  'san10_acmix': dict(stem_size=1),
  'pvt_tiny_acmix': dict(image_size=96, block_operators=_ALONE),
  'mask_rcnn': dict(backbone='resnet26', neck_features=16),
}


def _random(name, **fields):
  """Variables of a model, every entry different."""
  model = acmix_jax.create_model(name, **fields)
  return official.random_variables(model, jnp.zeros((1, 128, 128, 3)))


@pytest.mark.parametrize('name', _MODELS)
def test_weights_go_there_and_back(name):
  fields = dict(stage_sizes=(1, 1, 1, 1), num_classes=3) | _MODELS[name]
  variables = _random(name, **fields)
  arrays = acmix_jax.to_torch(name, variables, **fields)
  assert all(x.flags.c_contiguous for x in arrays.values())
  found = acmix_jax.from_torch(name, arrays, **fields)
  chex.assert_trees_all_equal(found, variables)


def _classifier(name):
  fields = dict(stem_size=1) if name == 'san10' else {}
  return official.model(name)[0], fields


def _segmenter(name, backbone):
  state_dict, *_ = official.segmenter(f'{name}_{backbone}')
  return state_dict, dict(backbone=backbone, num_classes=7)


def _detector(name, backbone):
  state_dict, *_ = detectors.whole(f'{name}_{backbone}')
  return state_dict, dict(backbone=backbone, num_classes=5)


@pytest.mark.parametrize(
  'load, name',
  [
    (_classifier, ['resnet26_acmix']),
    (_classifier, ['san10']),
    (_classifier, ['pvt_tiny']),
    (_classifier, ['swin_tiny_acmix']),
    (_segmenter, ['semantic_fpn', 'pvt_tiny']),
    (_detector, ['retinanet', 'pvt_tiny']),
    (_detector, ['cascade_mask_rcnn', 'swin_tiny']),
  ],
)
def test_official_state_dicts_come_back_whole(load, name):
  state_dict, fields = load(*name)
  state_dict = {k: x for k, x in state_dict.items() if not _LATER.match(k)}
  blocks = 2 if 'swin' in name[-1] else 1
  fields['stage_sizes'] = (blocks,) * 4
  variables = acmix_jax.from_torch(name[0], state_dict, **fields)
  found = acmix_jax.to_torch(name[0], variables, **fields)
  # Some of them were saved without their buffers.
  assert all(key.endswith(_BUFFERS) for key in found.keys() - state_dict.keys())
  for key, x in state_dict.items():
    assert found[key].shape == x.shape, key
    if load is _detector and key == 'backbone.pos_embed4':
      # The position of a class token, which detection does not use.
      x = x * (np.arange(x.shape[1]) > 0)[:, None]
    if not key.endswith(_BUFFERS):
      np.testing.assert_array_equal(found[key], x, key)


@pytest.fixture(scope='module')
def swin():
  """Official names of a Swin with windows of 3x3."""
  fields = dict(stage_sizes=(2, 2, 1, 2), window_size=3, num_classes=2)
  variables = _random('swin_tiny', **fields)
  return acmix_jax.to_torch('swin_tiny', variables, **fields)


def test_an_index_says_which_bias_a_pair_of_pixels_has(swin):
  index = swin['layers.0.blocks.0.attn.relative_position_index']
  assert index.dtype == np.int64
  pixels = list(itertools.product(range(3), repeat=2))
  for query, (row, column) in enumerate(pixels):
    for key, (i, j) in enumerate(pixels):
      assert index[query, key] == (row - i + 2) * 5 + column - j + 2


def test_masks_leave_pairs_that_are_neighbours_without_the_shift(swin):
  masks = {key for key in swin if key.endswith('attn_mask')}
  # The last stage is one window, and is not shifted.
  assert masks == {f'layers.{i}.blocks.1.attn_mask' for i in (0, 1)}
  mask = swin['layers.1.blocks.1.attn_mask']
  assert mask.shape == (16, 9, 9) and mask.dtype == np.float32
  size, side, shift = 12, 3, 1
  for number, (top, left) in enumerate(
    itertools.product(range(0, size, side), repeat=2)
  ):
    pixels = [
      np.array([top + i, left + j]) for i in range(side) for j in range(side)
    ]
    for (i, a), (j, b) in itertools.product(enumerate(pixels), repeat=2):
      before = (a + shift) % size - (b + shift) % size
      allowed = (before == a - b).all()
      assert mask[number, i, j] == (0 if allowed else -100)


def test_variables_that_do_not_fit_are_named():
  fields = dict(stage_sizes=(1,), num_classes=3)
  flat = names.flatten(_random('resnet26', **fields))
  del flat['params/backbone/stem_conv/kernel']
  flat['params/other'] = np.ones(2)
  with pytest.raises(ValueError) as error:
    acmix_jax.to_torch(
      'resnet26',
      names.unflatten(flat),
      **(fields | dict(num_classes=4)),
    )
  assert str(error.value).split('\n') == [
    'resnet26: the variables do not fit.',
    '1 missing: params/backbone/stem_conv/kernel',
    '1 unknown: params/other',
    '2 of another shape: params/head/dense/bias (3,), the model has (4,); '
    'params/head/dense/kernel (256, 3), the model has (256, 4)',
  ]
