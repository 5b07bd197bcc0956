"""Networks that compute the same with ACmix, without it, or with one path."""

import chex
import numpy as np
import pytest

import acmix_jax
from acmix_jax import models
from acmix_jax.weights import acmixing, names
from tests.models import segmenters_test
from tests.weights import tiny_networks


def _acmixified(name, **options):
  return acmix_jax.acmixify(
    name,
    tiny_networks.variables(name),
    **tiny_networks.fields(name),
    **options,
  )


def _with_weights(variables, first, second):
  """With one (alpha, beta) in the second stage, and another elsewhere."""
  flat = names.flatten(variables)
  for key in flat:
    pair = second if '/stage2_' in key else first
    for weight, value in zip(('alpha', 'beta'), pair, strict=True):
      if key.endswith(f'/{weight}'):
        flat[key] = np.float32(value)
  return names.unflatten(flat)


def _assert_same_logits(ours, expected):
  assert expected.std() > 0.01
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


# One test, which compiles each network once.
@pytest.mark.parametrize('name', tiny_networks.PARENTS)
def test_networks_compute_the_same_there_and_back(name):
  logits, fields = tiny_networks.logits, tiny_networks.fields(name)
  plain, with_acmix = tiny_networks.variables(name), models.with_acmix(name)
  mixed = _acmixified(name)
  _assert_same_logits(logits(with_acmix, mixed), logits(name, plain))

  back = acmix_jax.collapse(with_acmix, mixed, threshold=0.01, **fields)
  chex.assert_trees_all_equal(back.variables, plain)

  variables = tiny_networks.variables(with_acmix)
  less = acmix_jax.collapse(
    with_acmix,
    _with_weights(variables, (-0.7, 0), (0.001, 1.5)),
    threshold=0.05,
    **fields,
  )
  for block, path in less.kept.items():
    second = block.startswith('stage2_')
    assert path == ('shift_convolution' if second else 'attention'), block
  assert len({*less.kept.values()}) == 2
  _assert_same_logits(
    logits(with_acmix, less.variables, less.block_operators),
    logits(with_acmix, _with_weights(variables, (-0.7, 0), (0, 1.5))),
  )


def test_the_new_path_starts_as_at_random_with_the_weight_given():
  flat = names.flatten(_acmixified('swin_tiny', new_weight=0.25))
  operator = 'params/backbone/stage1_1/operator'
  assert (flat[f'{operator}/alpha'], flat[f'{operator}/beta']) == (1, 0.25)
  shifts = flat[f'{operator}/depthwise_kernel']
  assert (shifts.sum(axis=(0, 1)) == 1).all() and set(shifts.flat) == {0, 1}
  # Uniform within 1 / sqrt(inputs), as PyTorch's: two heads have six maps.
  for name in ('fc_kernel', 'fc_bias'):
    values = flat[f'{operator}/{name}']
    assert 0.2 < abs(values).max() <= 6**-0.5
  again = names.flatten(_acmixified('swin_tiny', seed=0))
  other = names.flatten(_acmixified('swin_tiny', seed=1))
  fc_kernel = f'{operator}/fc_kernel'
  np.testing.assert_array_equal(again[fc_kernel], flat[fc_kernel])
  assert (other[fc_kernel] != flat[fc_kernel]).any()


def _zeros(model):
  return names.unflatten(
    {k: np.zeros(x.shape) for k, x in tiny_networks.shapes(model).items()}
  )


@pytest.mark.parametrize(
  ('head', 'backbone'), [('upernet', 'swin_tiny'), ('semantic_fpn', 'pvt_tiny')]
)
def test_of_a_segmenter_the_backbone_alone_changes(head, backbone):
  fields = tiny_networks.fields(backbone) | segmenters_test.SMALL[head]
  before = _zeros(acmix_jax.create_model(head, 5, backbone=backbone, **fields))
  after = acmix_jax.acmixify(head, before, backbone=backbone, **fields)
  hybrid = acmix_jax.create_model(
    head, 5, backbone=f'{backbone}_acmix', **fields
  )
  wanted = tiny_networks.shapes(hybrid)
  assert {k: x.shape for k, x in names.flatten(after).items()} == {
    k: x.shape for k, x in wanted.items()
  }
  assert after['params']['head'] == before['params']['head']


def _of_nine_inputs(variables):
  """Convolutions of nine input channels: ACmix has their rank."""
  flat = names.flatten(variables)
  for name, x in flat.items():
    if name.endswith('operator/kernel'):
      flat[name] = np.where(np.arange(x.shape[2])[:, None] < 9, x, 0)
  return names.unflatten(flat)


def test_convolutions_of_low_rank_become_paths_of_the_same_function(caplog):
  variables = _of_nine_inputs(tiny_networks.variables('resnet26'))
  fields = tiny_networks.fields('resnet26')
  changed = acmix_jax.acmixify('resnet26', variables, fit='nearest', **fields)
  assert 'stage1_0/operator 0.00, backbone/stage2_0/operator 0.00' in (
    caplog.text
  )
  operator = changed['params']['backbone']['stage2_0']['operator']
  assert (operator['alpha'], operator['beta']) == (0, 1)
  assert operator['attention']['position']['kernel'].std() > 0.1
  expected = tiny_networks.logits('resnet26', variables)
  ours = tiny_networks.logits('resnet26_acmix', changed)
  _assert_same_logits(ours, expected)


def test_blocks_are_changed_in_turns():
  variables = tiny_networks.variables('resnet26')
  fields = tiny_networks.fields('resnet26')
  some = acmix_jax.acmixify(
    'resnet26',
    variables,
    fit='nearest',
    block_operators=(('stage2_0', 'conv'),),
    **fields,
  )
  first, second = (
    some['params']['backbone'][block]['operator']
    for block in ('stage1_0', 'stage2_0')
  )
  assert 'alpha' in first
  chex.assert_trees_all_equal(
    second, variables['params']['backbone']['stage2_0']['operator']
  )
  every = acmix_jax.acmixify('resnet26', some, fit='nearest', **fields)
  every = every['params']['backbone']
  chex.assert_trees_all_equal(every['stage1_0']['operator'], first)
  assert 'alpha' in every['stage2_0']['operator']


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('swin_tiny_acmix', {}, 'has ACmix already. Models without: resnet26, '),
    ('swin_tinny', {}, "Did you mean 'swin_tiny'"),
    ('upernet', {}, 'upernet needs a backbone'),
    ('swin_tiny', {'fit': 'exactly'}, "Did you mean 'exact'"),
    ('swin_tiny', {'new_weight': float('nan')}, 'no finite number'),
    ('swin_tiny', {'windowsize': 4}, "Did you mean 'window_size'"),
    ('resnet26', {}, "'nearest' in place of 'exact'"),
    ('resnet26', {'fit': 'nearest', 'kernel_conv': 1}, 'kernel_conv=1 is'),
    (
      'resnet26',
      {'fit': 'nearest', 'width': 16},
      r'kernel \(3, 3, 8, 8\) would need projections \(8, 8\), the model '
      r'has \(16, 16\)',
    ),
    (
      'swin_tiny',
      {'mlp_ratio': 4},
      r'fc1/kernel \(16, 32\), the model has \(16, 64\)',
    ),
  ],
)
def test_what_cannot_become_acmix_is_refused(name, options, message):
  known = 'swin_tiny' if name.startswith(('swin', 'upernet')) else name
  variables = tiny_networks.variables(known)
  options = tiny_networks.fields(known) | options
  with pytest.raises((ValueError, KeyError), match=message):
    acmix_jax.acmixify(name, variables, **options)


def test_variables_of_other_models_are_refused():
  fields = tiny_networks.fields('swin_tiny')
  with pytest.raises(ValueError, match='no variables of a model.*params/x'):
    acmix_jax.acmixify('swin_tiny', {'params': {'x': np.zeros(2)}}, **fields)
  mixed = tiny_networks.variables('swin_tiny_acmix')
  with pytest.raises(ValueError, match='3 ACmix layers: backbone/stage1_0'):
    acmix_jax.acmixify('swin_tiny', mixed, **fields)
  plain = tiny_networks.variables('swin_tiny')
  with pytest.raises(ValueError, match='The model has no ACmix layer'):
    acmixing.acmixed(plain, plain)
