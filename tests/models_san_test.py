"""The SANs against the official models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from tests.fixtures import official

PARAMETERS = {
  'san10': 11_841_124,
  'san10_acmix': 11_994_612,
  'san15': 16_181_310,
  'san15_acmix': 16_414_134,
  'san19': 20_518_470,
  'san19_acmix': 20_829_278,
}
TINY = dict(stage_sizes=(1, 1, 1), widths=(32, 64, 64), kernel_sizes=(3, 3, 5))


def images(*shape):
  return jax.ShapeDtypeStruct((*shape, 3), jnp.float32)


@pytest.mark.parametrize('name', acmix_jax.list_models('san*'))
def test_parameter_count_is_the_official_one(name):
  model = acmix_jax.create_model(name)
  variables = jax.eval_shape(model.init, jax.random.key(0), images(1, 224, 224))
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[name]


def test_logits_equal_the_official_model():
  state_dict, x, want = official.model('san10')
  variables = acmix_jax.from_torch('san10', state_dict)
  logits = jax.jit(acmix_jax.create_model('san10').apply)(variables, x)
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * want.std())


@pytest.mark.parametrize('name', ['san10', 'san10_acmix'])
def test_features_are_the_last_four_stages(name):
  model = acmix_jax.create_model(name)
  x = images(2, 160, 288)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  maps = jax.eval_shape(
    lambda v, x: model.apply(v, x, method='features'), variables, x
  )
  assert {key: value.shape for key, value in maps.items()} == {
    'stage1': (2, 40, 72, 256),
    'stage2': (2, 20, 36, 512),
    'stage3': (2, 10, 18, 1024),
    'stage4': (2, 5, 9, 2048),
  }


def test_too_small_images_are_an_error():
  model = acmix_jax.create_model('san10')
  with pytest.raises(ValueError, match='3x3 map cannot be reflected by 3'):
    jax.eval_shape(model.init, jax.random.key(0), images(1, 96, 96))


def test_lists_of_another_length_are_an_error():
  model = acmix_jax.create_model('san10', widths=(32, 64))
  with pytest.raises(ValueError, match='widths=.* one for each of the 5'):
    jax.eval_shape(model.init, jax.random.key(0), images(1, 224, 224))


@pytest.mark.parametrize('mix', ['attention', 'acmix'])
def test_every_parameter_has_a_finite_gradient(mix):
  name = {'attention': 'san10', 'acmix': 'san10_acmix'}[mix]
  model = acmix_jax.create_model(name, 10, **TINY)
  x = jax.random.normal(jax.random.key(1), (4, 24, 24, 3))
  variables = jax.jit(model.init)(jax.random.key(0), x)

  def loss(params):
    logits, _ = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].mean()

  gradients = jax.jit(jax.grad(loss))(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path
