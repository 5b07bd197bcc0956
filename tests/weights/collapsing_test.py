"""ACmix layers of which one path is left; acmixing_test has their logits."""

import pytest

import acmix_jax
from acmix_jax.tools import cost
from acmix_jax.weights import names
from tests.weights import tiny_networks


def _collapsed(name, variables, **options):
  return acmix_jax.collapse(
    name, variables, **tiny_networks.fields(name), **options
  )


def test_layers_are_named_by_patterns_and_keep_what_they_had():
  name, fields = 'swin_tiny_acmix', tiny_networks.fields('swin_tiny')
  layers = {'stage1_1': 'shift_convolution', 'stage1_*': 'attention'}
  first = _collapsed(name, tiny_networks.variables(name), layers=layers)
  assert first.kept == {
    'stage1_1': 'shift_convolution',
    'stage1_0': 'attention',
  }
  second = _collapsed(
    name,
    first.variables,
    layers={'stage2_0': 'attention'},
    block_operators=first.block_operators,
  )
  assert second.block_operators == (
    ('stage2_0', 'attention'),
    *first.block_operators,
  )
  model = acmix_jax.create_model(
    name, 10, block_operators=second.block_operators, **fields
  )
  wanted = tiny_networks.shapes(model)
  assert names.flatten(second.variables).keys() == wanted.keys()
  assert not any('alpha' in name for name in wanted)
  # Nothing is left of the attention but what the convolution takes.
  left = second.variables['params']['backbone']['stage1_1']['operator']
  assert left.keys() == {
    'attention',
    'fc_kernel',
    'fc_bias',
    'depthwise_kernel',
  }
  assert left['attention'].keys() == {'query_key_value'}


def test_multiply_adds_are_those_of_the_paths_left():
  def macs(operator):
    model = acmix_jax.create_model(
      'resnet26_acmix',
      10,
      stage_sizes=(1, 1),
      width=8,
      block_operators=(('stage2_0', operator),),
    )
    return sum(cost.count(model, 64).operators['backbone/stage2_0/operator'])

  # 16 channels; 16x16 pixels before and 8x8 behind the stride. The position
  # term maps two coordinates to the channels of a head.
  projections, attention = 3 * 16 * 16 * 256, 98 * 16 * 64 + 2 * 4 * 256
  convolution = 27 * 16 * 256 + 81 * 16 * 64
  assert macs('attention') == projections + attention
  assert macs('shift_convolution') == projections + convolution
  assert macs('acmix') == projections + attention + convolution


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('swin_tiny_acmix', {}, 'Give a threshold, or the layers'),
    ('swin_tiny_acmix', {'threshold': 0.6}, 'at most 0.5'),
    (
      'swin_tiny_acmix',
      {'layers': {'stage5_*': 'attention'}},
      'matches no ACmix layer; there are stage1_0, stage1_1, stage2_0',
    ),
    (
      'swin_tiny_acmix',
      {'layers': {'stage1_0': 'conv'}},
      "'conv' is unknown.*attention, shift_convolution",
    ),
    ('swin_tiny', {'threshold': 0.1}, 'The network has no ACmix layer'),
    (
      'swin_tiny_acmix',
      {'threshold': 0.1, 'width': 32},
      'Hardly any weights fit the model',
    ),
  ],
)
def test_what_cannot_collapse_is_refused(name, options, message):
  options = tiny_networks.fields(name) | options
  with pytest.raises(ValueError, match=message):
    acmix_jax.collapse(name, tiny_networks.variables(name), **options)
