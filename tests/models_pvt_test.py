"""The PVTs against the official models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from acmix_jax.models import pvt
from tests.fixtures import official

PARAMETERS = {
  'pvt_small': 24_485_864,
  'pvt_small_acmix': 24_824_611,
  'pvt_tiny': 13_229_288,
  'pvt_tiny_acmix': 13_396_056,
}
TINY = dict(
  stage_sizes=(1, 2),
  widths=(16, 32),
  num_heads=(1, 2),
  mlp_ratios=(2, 2),
  reductions=(2, 1),
  image_size=32,
)


def images(*shape):
  return jax.ShapeDtypeStruct((*shape, 3), jnp.float32)


@pytest.mark.parametrize('name', acmix_jax.list_models('pvt*'))
def test_parameter_count_is_the_official_one(name):
  model = acmix_jax.create_model(name)
  variables = jax.eval_shape(model.init, jax.random.key(0), images(1, 224, 224))
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[name]


def test_logits_equal_the_official_model():
  state_dict, x, want = official.model('pvt_tiny')
  variables = acmix_jax.from_torch('pvt_tiny', state_dict)
  logits = jax.jit(acmix_jax.create_model('pvt_tiny').apply)(variables, x)
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * want.std())


@pytest.mark.parametrize('name', ['pvt_tiny', 'pvt_tiny_acmix'])
def test_features_are_maps_of_four_stages_at_any_size(name):
  model = acmix_jax.create_model(name)
  x = images(2, 160, 300)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  maps = jax.eval_shape(
    lambda v, x: model.apply(v, x, method='features'), variables, x
  )
  assert {key: value.shape for key, value in maps.items()} == {
    'stage1': (2, 40, 75, 64),
    'stage2': (2, 20, 37, 128),
    'stage3': (2, 10, 18, 320),
    'stage4': (2, 5, 9, 512),
  }
  logits = jax.eval_shape(model.apply, variables, x)
  assert logits.shape == (2, 1000)


@pytest.mark.parametrize('shape', [(8, 12), (3, 5), (6, 6)])
def test_position_embeddings_are_interpolated_from_pixel_centres(shape):
  position = np.random.default_rng(0).standard_normal((6, 6, 2), np.float32)
  got = pvt._resized(position, jnp.zeros((1, *shape, 2)))[0]
  want = position
  for axis, size in enumerate(shape):
    at = np.clip((np.arange(size) + 0.5) * 6 / size - 0.5, 0, 5)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, 5)
    part = np.expand_dims(at - low, (1 - axis, 2)).astype(np.float32)
    want = want.take(low, axis) * (1 - part) + want.take(high, axis) * part
  official.assert_relative(got, want)


def test_too_small_images_are_an_error():
  model = acmix_jax.create_model('pvt_tiny')
  with pytest.raises(ValueError, match='7x8 map has no patch of 8x8'):
    jax.eval_shape(model.init, jax.random.key(0), images(1, 31, 32))


def test_drop_path_beyond_one_is_an_error():
  model = acmix_jax.create_model('pvt_tiny', drop_path=1.0)
  with pytest.raises(ValueError, match='drop_path=1.0'):
    jax.eval_shape(model.init, jax.random.key(0), images(1, 224, 224))


def test_features_leave_out_the_class_token():
  model = acmix_jax.create_model('pvt_tiny', 10, **TINY)
  x = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))

  @jax.jit
  def run(params):
    maps = model.apply({'params': params}, x, method='features')
    return maps['stage2'], model.apply({'params': params}, x)

  params = jax.jit(model.init)(jax.random.key(0), x)['params']
  token = jax.random.normal(jax.random.key(2), params['token'].shape)
  maps, logits = run(params)
  same_maps, other_logits = run({**params, 'token': token})
  np.testing.assert_array_equal(maps, same_maps)
  assert np.abs(logits - other_logits).max() > 1e-2


@pytest.mark.parametrize('mix', ['attention', 'acmix'])
def test_every_parameter_has_a_finite_gradient(mix):
  name = {'attention': 'pvt_tiny', 'acmix': 'pvt_tiny_acmix'}[mix]
  model = acmix_jax.create_model(name, 10, drop_path=0.1, **TINY)
  x = jax.random.normal(jax.random.key(1), (4, 40, 32, 3))
  variables = jax.jit(model.init)(jax.random.key(0), x)

  def loss(params):
    rngs = {'dropout': jax.random.key(2)}
    logits = model.apply({'params': params}, x, train=True, rngs=rngs)
    return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].mean()

  gradients = jax.jit(jax.grad(loss))(variables['params'])
  unseen = ('beta', 'mixing', 'shifts')
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all(), path
    # The head reads the token alone, which the last convolution skips.
    last = path[0].key == 'stage2_1' and path[-1].key in unseen
    assert (np.abs(leaf).max() > 0) != last, path
