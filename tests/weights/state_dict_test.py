"""State dicts in all the forms that PyTorch programs save them in."""

import logging

import chex
import numpy as np
import pytest

import acmix_jax
from acmix_jax.weights import state_dict as state_dict_lib
from tests.fixtures import official

_FIELDS = {'stage_sizes': (1, 1), 'num_classes': 512}


class Tensor:
  """What of a PyTorch tensor is used; refuses what PyTorch refuses."""

  def __init__(self, value, attached=False, dtype='float32'):
    self._value, self._attached, self.dtype = value, attached, dtype

  def detach(self):
    return Tensor(self._value, False, self.dtype)

  def cpu(self):
    return self

  def float(self):
    return Tensor(self._value, self._attached)

  def numpy(self):
    if self._attached:
      raise RuntimeError('Can not call numpy() on Tensor that requires grad.')
    if self.dtype == 'bfloat16':
      raise TypeError('Got unsupported ScalarType BFloat16')
    return self._value

  def __array__(self, *args, **kwargs):
    return self.numpy()


@pytest.fixture(scope='module')
def state_dict():
  """A small ResNet-ACmix by its official names."""
  entries, _, _ = official.model('resnet26_acmix')
  entries = {
    name: value
    for name, value in entries.items()
    if not name.startswith(('layer2.1', 'layer3', 'layer4'))
  }
  weight = np.ones((512, 512), np.float32)
  return entries | {'fc.weight': weight, 'fc.bias': weight[0]}


@pytest.fixture(scope='module')
def variables(state_dict):
  return acmix_jax.from_torch('resnet26_acmix', state_dict, **_FIELDS)


@pytest.mark.parametrize(
  'wrap',
  [
    lambda x: Tensor(x),
    lambda x: Tensor(x, attached=True),
    lambda x: Tensor(x, attached=True, dtype='bfloat16'),
  ],
  ids=['tensor', 'parameter', 'bfloat16'],
)
def test_tensors_are_taken_as_arrays(wrap, state_dict, variables):
  tensors = {name: wrap(value) for name, value in state_dict.items()}
  found = acmix_jax.from_torch('resnet26_acmix', tensors, **_FIELDS)
  chex.assert_trees_all_equal(found, variables)


@pytest.mark.parametrize(
  'prefix', ['module.', '_orig_mod.', 'model.', 'module._orig_mod.']
)
@pytest.mark.parametrize(
  'key', ['state_dict', 'model', 'model_state', 'state_dict_ema', None]
)
def test_wrappings_are_taken_off_and_told(prefix, key, caplog):
  arrays = {'a.model.w': np.ones(2), 'b': np.zeros(())}
  saved = {prefix + name: x for name, x in arrays.items()}
  if key:
    saved = {'epoch': 3, key: saved}
  with caplog.at_level(logging.INFO, 'acmix_jax'):
    found = state_dict_lib.unwrap(saved)
  chex.assert_trees_all_equal(
    found, {name: np.float32(x) for name, x in arrays.items()}
  )
  told = [f'Reading names without their prefix {prefix}']
  if key:
    told.insert(0, f'Reading the entry {key!r} of epoch, {key}.')
  assert [record.getMessage() for record in caplog.records] == told


def test_moving_averages_are_preferred_and_wrappings_may_be_nested():
  raw, average = {'w': np.zeros(1)}, {'w': np.ones(1)}
  for saved in (
    {'state_dict': raw, 'state_dict_ema': average},
    {'model': {'state_dict': average}},
  ):
    assert state_dict_lib.unwrap(saved)['w'] == 1


def test_the_weights_of_the_last_update_are_read_on_request(caplog):
  caplog.set_level(logging.INFO, 'acmix_jax')
  raw, average = {'w': np.zeros(1)}, {'w': np.ones(1)}
  for key, ema in (('state_dict', 'state_dict_ema'), ('model', 'model_ema')):
    saved = {ema: average, key: raw}
    assert state_dict_lib.unwrap(saved, average=False)['w'] == 0
    assert f'Reading the entry {key!r} of {ema}, {key}.' in caplog.text


def test_counters_are_no_weights(state_dict, variables):
  counters = {'n_averaged': np.ones(()), 'bn1.num_batches_tracked': np.ones(())}
  found = acmix_jax.from_torch(
    'resnet26_acmix', {'model_ema': state_dict | counters}, **_FIELDS
  )
  chex.assert_trees_all_equal(found, variables)


@pytest.mark.parametrize(
  ('saved', 'message'),
  [
    ({'epoch': 1}, 'no state dict.* 1 entries are no arrays: epoch'),
    ({}, 'no state dict'),
    ({'w': np.ones(1), 'module.w': np.ones(1)}, '1 names .* with and without'),
  ],
)
def test_what_is_no_state_dict_is_refused(saved, message):
  with pytest.raises(ValueError, match=message):
    acmix_jax.from_torch('resnet26', saved)


def test_all_that_does_not_fit_is_named(state_dict):
  entries = dict(state_dict)
  del entries['layer2.0.conv2.rate1']
  entries['layer9.conv.weight'] = np.zeros(3)
  entries['fc.weight'] = entries['fc.weight'][:10]
  with pytest.raises(ValueError) as error:
    acmix_jax.from_torch('resnet26_acmix', entries, **_FIELDS)
  assert str(error.value).split('\n')[1:] == [
    '1 missing: layer2.0.conv2.rate1',
    '1 extra: layer9.conv.weight',
    '1 of another shape: fc.weight (10, 512), '
    'params/head/dense/kernel is (512, 512)',
  ]


@pytest.mark.parametrize(
  ('name', 'shape'),
  [
    ('layer1.0.conv2.rate1', (2,)),
    ('conv1.weight', (64, 3)),
    ('fc.weight', (512, 512, 3, 3)),
    ('fc.bias', ()),
  ],
)
def test_both_shapes_are_named_whatever_the_axes(name, shape, state_dict):
  entries = state_dict | {name: np.zeros(shape)}
  with pytest.raises(ValueError) as error:
    acmix_jax.from_torch('resnet26_acmix', entries, **_FIELDS)
  assert f'1 of another shape: {name} {shape}, params/' in str(error.value)


def test_of_many_entries_ten_are_named():
  entries = {f'other{i}.weight': np.zeros(3) for i in range(25)}
  with pytest.raises(ValueError) as error:
    acmix_jax.from_torch('resnet26', entries)
  assert '25 extra: other0.weight; ' in str(error.value)
  assert str(error.value).count('other') == 10
  assert 'and 15 more' in str(error.value)
