"""State dicts of segmenters as mmsegmentation and the releases have them."""

import logging

import chex
import numpy as np
import pytest

import acmix_jax
from tests.fixtures import official

_FIELDS = {
  'semantic_fpn': dict(backbone='pvt_tiny', num_classes=7),
  'upernet': dict(backbone='swin_tiny', num_classes=7),
}


def convert(head, state_dict):
  return acmix_jax.from_torch(head, state_dict, **_FIELDS[head])


@pytest.fixture(scope='module')
def pvt():
  state_dict, *_ = official.segmenter('semantic_fpn_pvt_tiny')
  return state_dict


@pytest.fixture(scope='module')
def swin():
  state_dict, *_ = official.segmenter('upernet_swin_tiny')
  return state_dict


def openmmlab(state_dict):
  """Names and order of the Swin that mmsegmentation itself has."""
  # The pixel of each quarter of a merged patch: down, then right.
  quarters = [(0, 0), (1, 0), (0, 1), (1, 1)]
  renamed = {}
  for name, x in state_dict.items():
    if '.downsample.' in name:
      merged, width = x.copy(), x.shape[-1] // 4
      for number, (i, j) in enumerate(quarters):
        quarter = x[..., number * width : (number + 1) * width]
        merged[..., 2 * i + j :: 4] = quarter
      x = merged
    name = name.replace('patch_embed.proj.', 'patch_embed.projection.')
    name = name.replace('.layers.', '.stages.')
    name = name.replace('.attn.', '.attn.w_msa.')
    name = name.replace('.mlp.fc1.', '.ffn.layers.0.0.')
    renamed[name.replace('.mlp.fc2.', '.ffn.layers.1.')] = x
  return renamed


def test_the_swin_of_mmsegmentation_is_taken(swin):
  renamed = openmmlab(swin)
  assert renamed.keys() != swin.keys()
  chex.assert_trees_all_equal(
    convert('upernet', renamed), convert('upernet', swin)
  )


def test_each_part_has_its_entries(pvt):
  variables = convert('semantic_fpn', pvt)
  params = variables['params']
  assert params.keys() == {'backbone', 'neck', 'head'}
  np.testing.assert_array_equal(
    params['neck']['output2']['kernel'],
    pvt['neck.fpn_convs.2.conv.weight'].transpose(2, 3, 1, 0),
  )
  np.testing.assert_array_equal(
    variables['batch_stats']['head']['level3_2']['norm']['var'],
    pvt['decode_head.scale_heads.3.4.bn.running_var'],
  )
  # The row of the class token, which segmentation does not use.
  np.testing.assert_array_equal(
    params['backbone']['stage4_token_position'],
    pvt['backbone.pos_embed4'][0, 0],
  )


def test_what_a_training_program_saved_around_it_is_taken_off(pvt, caplog):
  saved = {
    'meta': {'iter': 80_000},
    'state_dict': {f'module.{name}': x for name, x in pvt.items()},
    'optimizer': {},
  }
  with caplog.at_level(logging.INFO, 'acmix_jax'):
    variables = convert('semantic_fpn', saved)
  assert "Reading the entry 'state_dict' of meta" in caplog.text
  chex.assert_trees_all_equal(variables, convert('semantic_fpn', pvt))


def test_all_that_does_not_fit_is_named(pvt):
  entries = dict(pvt)
  del entries['neck.lateral_convs.1.conv.bias']
  entries['auxiliary_head.conv_seg.bias'] = np.zeros(7)
  entries['decode_head.conv_seg.weight'] = np.zeros((150, 128, 1, 1))
  with pytest.raises(ValueError) as error:
    convert('semantic_fpn', entries)
  assert str(error.value).split('\n')[1:] == [
    '1 missing: neck.lateral_convs.1.conv.bias',
    '1 extra: auxiliary_head.conv_seg.bias',
    '1 of another shape: decode_head.conv_seg.weight (150, 128, 1, 1), '
    'params/head/classifier/kernel is (1, 1, 128, 7)',
  ]


def test_a_head_without_its_backbone_is_refused(pvt):
  with pytest.raises(ValueError, match='semantic_fpn needs a backbone'):
    acmix_jax.from_torch('semantic_fpn', pvt)
