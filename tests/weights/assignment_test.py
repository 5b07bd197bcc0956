"""Weights put in the place of a model's variables."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax import weights
from acmix_jax.weights import names


def _variables(classes=3, value=0.0, layers=4):
  flat = {
    f'params/stage{i}/kernel': jnp.full((2, i), value) for i in range(layers)
  }
  flat['params/head/kernel'] = jnp.full((5, classes), value)
  flat['batch_stats/norm/mean'] = jnp.full(4, value)
  return names.unflatten(flat)


def _numpy(tree):
  return jax.tree.map(np.asarray, tree)


def test_weights_replace_variables():
  new = weights.assign(_variables(), _numpy(_variables(value=2.0)))
  chex.assert_trees_all_equal(new, _variables(value=2.0))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(new))


def test_weights_take_the_type_and_devices_of_shapes():
  mesh = jax.make_mesh(
    (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data')
  )
  shapes = {
    'params': {'w': jax.ShapeDtypeStruct((4,), 'float16', sharding=sharding)}
  }
  new = weights.assign(shapes, {'params': {'w': np.arange(4.0)}})['params']['w']
  assert new.dtype == 'float16' and new.sharding == sharding
  np.testing.assert_array_equal(new, np.arange(4))


def test_replaceable_variables_stay_where_the_weights_lack_or_reshape_them(
  caplog,
):
  loaded = names.flatten(_numpy(_variables(classes=7, value=2.0)))
  loaded['params/head/bias'] = np.ones(7)
  del loaded['params/stage3/kernel']
  with caplog.at_level('INFO', 'acmix_jax'):
    new = weights.assign(
      _variables(), names.unflatten(loaded), r'^params/(head|stage3)/'
    )
  want = names.flatten(_variables(value=2.0))
  for fresh in ('params/head/kernel', 'params/stage3/kernel'):
    want[fresh] = names.flatten(_variables())[fresh]
    assert fresh in caplog.text
  chex.assert_trees_all_equal(new, names.unflatten(want))


def test_all_disagreements_are_counted_and_ten_of_a_kind_are_named():
  model = _variables(layers=40)
  loaded = names.flatten(_numpy(model))
  for i in range(12):
    del loaded[f'params/stage{i}/kernel']
  loaded['params/old'] = np.ones(())
  loaded['params/head/kernel'] = np.ones((5, 9))
  with pytest.raises(ValueError) as error:
    weights.assign(model, names.unflatten(loaded), 'nothing')
  _, missing, unknown, shape = str(error.value).split('\n')
  assert missing.startswith('12 missing: params/stage0/kernel; ')
  assert missing.count('params/') == 10 and missing.endswith('and 2 more')
  assert unknown == '1 unknown: params/old'
  assert shape == (
    '1 of another shape: params/head/kernel (5, 9), the model has (5, 3)'
  )


def _renamed(tree, rename):
  flat = {rename(name): x for name, x in names.flatten(tree).items()}
  return names.unflatten(flat)


def _behind_backbone(name):
  return name.replace('/', '/backbone/', 1)


def test_a_prefix_that_most_names_lack_is_named():
  old, new = _variables(layers=20), _numpy(_variables(layers=20))
  longer = _renamed(old, _behind_backbone)
  for model, loaded, change in (
    (longer, new, 'with'),
    (old, _numpy(longer), 'without'),
  ):
    with pytest.raises(ValueError) as error:
      weights.assign(model, loaded)
    message = str(error.value)
    assert '0 of the 22 variables' in message
    assert message.endswith(
      f" 22 names of the weights would be the model's {change} backbone/ after "
      'the collection (params/backbone/...).'
    )
    # Five names of each side, and no list of all.
    assert message.count('/kernel (') + message.count('/mean (') == 10


def test_weights_of_which_nothing_fits_are_refused_even_if_all_may_differ():
  with pytest.raises(ValueError, match='Hardly any') as error:
    weights.assign(_variables(), {'params': {'other': np.ones(2)}}, '.')
  assert 'params/other (2,)' in str(error.value)
  assert 'after the collection' not in str(error.value)


def test_hardly_any_is_less_than_half_of_what_may_not_be_replaced():
  model = _variables(layers=6)  # Seven variables besides the head.
  loaded = names.flatten(_numpy(model))
  for i in range(3):
    del loaded[f'params/stage{i}/kernel']
  with pytest.raises(ValueError, match='3 missing'):
    weights.assign(model, names.unflatten(loaded), 'head')
  del loaded['params/stage3/kernel']
  with pytest.raises(ValueError, match='Hardly any .* 3 of the 7 variables'):
    weights.assign(model, names.unflatten(loaded), 'head')
