"""State dicts of detectors as mmdetection and the releases have them."""

import re

import chex
import numpy as np
import pytest

import acmix_jax
from tests.fixtures import detectors

_FIELDS = dict(backbone='pvt_tiny', num_classes=5)


@pytest.fixture(scope='module')
def release():
  """RetinaNet on the PVT of its authors."""
  return detectors.whole('retinanet')[0]


def _place(name):
  """The name of a part of a stage, 'patch_embed1', 'pos_embed1', 'block1.0'."""
  part, stage, block = name.groups()
  place = {
    'patch_embed': '0',
    'pos_embed': '1.0.pos_embed',
    'block': f'1.{int(block or 0) + 1}',
  }
  return f'layers.{int(stage) - 1}.{place[part]}'


def mmdetection(state_dict):
  """The names and shapes of mmdetection's own PVT."""
  renamed = {}
  for name, x in state_dict.items():
    if name.endswith('pos_embed4'):
      x = x[:, 1:]  # It has no row of a class token.
    if re.search(r'\.fc\d\.weight', name):
      x = x[:, :, None, None]
    if '.attn.kv.' in name:
      continue
    if '.attn.q.' in name:
      keys = state_dict[name.replace('.q.', '.kv.')]
      x = np.concatenate([x, keys])
    name = re.sub(
      r'(patch_embed|pos_embed|block)(\d)(?:\.(\d+))?', _place, name
    )
    for official, theirs in (
      ('.0.proj.', '.0.projection.'),
      ('.attn.proj.', '.attn.attn.out_proj.'),
      ('.attn.q.', '.attn.attn.in_proj_'),
      ('.mlp.fc1.', '.ffn.layers.0.'),
      ('.mlp.fc2.', '.ffn.layers.3.'),
    ):
      name = name.replace(official, theirs)
    renamed[name] = x
  return renamed


def test_the_pvt_of_mmdetection_is_taken(release):
  renamed = mmdetection(release)
  assert 'backbone.layers.2.1.1.attn.attn.in_proj_weight' in renamed
  chex.assert_trees_all_equal(
    acmix_jax.from_torch('retinanet', renamed, **_FIELDS),
    acmix_jax.from_torch('retinanet', release, **_FIELDS),
  )
