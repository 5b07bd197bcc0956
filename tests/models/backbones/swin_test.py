"""The Swins against the official models."""

import functools
import re

import chex
import jax
import numpy as np
import pytest

import acmix_jax
from tests.fixtures import official


def timm(name):
  """An official name as timm has it."""
  stage = re.match(r'layers\.(\d)\.downsample', name)
  if stage:
    return f'layers.{int(stage[1]) + 1}' + name[len('layers.0') :]
  return name.replace('head.', 'head.fc.')


def torchvision(name):
  """An official name as torchvision has it."""
  name = name.replace('patch_embed.proj', 'features.0.0')
  name = name.replace('patch_embed.norm', 'features.0.2')
  name = name.replace('mlp.fc1', 'mlp.0').replace('mlp.fc2', 'mlp.3')
  stage = re.match(r'layers\.(\d)\.(blocks\.|downsample\.)', name)
  if stage:
    number = 2 * int(stage[1]) + (1 if stage[2] == 'blocks.' else 2)
    return f'features.{number}.' + name[stage.end() :]
  return name


@pytest.mark.parametrize('other', [timm, torchvision])
def test_names_of_other_libraries_are_taken(other):
  state_dict, _, _ = official.model('swin_tiny')
  renamed = {other(name): value for name, value in state_dict.items()}
  assert renamed.keys() != state_dict.keys()
  # What the model can compute from its sizes is ignored.
  renamed['layers.0.blocks.1.attn_mask'] = np.zeros((64, 49, 49))
  renamed['features.1.0.attn.relative_position_index'] = np.zeros(49**2)
  chex.assert_trees_all_equal(
    acmix_jax.from_torch('swin_tiny', renamed),
    acmix_jax.from_torch('swin_tiny', state_dict),
  )


def test_dense_swin_equals_the_official_one():
  state_dict, images, stages = official.dense_swin()
  fields = dict(num_classes=7, backbone='swin_tiny')
  variables = acmix_jax.from_torch('upernet', state_dict, **fields)
  model = acmix_jax.create_model('upernet', **fields)
  run = jax.jit(functools.partial(model.apply, method='features'))
  result = run(variables, images)
  for name, expected in stages.items():
    official.assert_relative(result[name], expected, name=name)
