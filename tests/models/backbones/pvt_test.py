"""The PVTs against the official models."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from acmix_jax.models.backbones import pvt
from tests.fixtures import official
from tests.models import models_test


@pytest.mark.parametrize('shape', [(8, 12), (3, 5), (6, 6)])
def test_position_embeddings_are_interpolated_from_pixel_centres(shape):
  position = np.random.default_rng(0).standard_normal((6, 6, 2), np.float32)
  got = pvt._resized(position, jnp.zeros((1, *shape, 2)))
  want = position
  for axis, size in enumerate(shape):
    at = np.clip((np.arange(size) + 0.5) * 6 / size - 0.5, 0, 5)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, 5)
    part = np.expand_dims(at - low, (1 - axis, 2)).astype(np.float32)
    want = want.take(low, axis) * (1 - part) + want.take(high, axis) * part
  official.assert_relative(got, want)


def test_features_leave_out_the_class_token():
  model, x = models_test.tiny('pvt_tiny')

  @jax.jit
  def run(params):
    maps = model.apply({'params': params}, x, method='features')
    return maps['stage2'], model.apply({'params': params}, x)

  params = jax.jit(model.init)(jax.random.key(0), x)['params']
  head = params['head']
  token = jax.random.normal(jax.random.key(2), head['token'].shape)
  maps, logits = run(params)
  same_maps, other_logits = run({**params, 'head': {**head, 'token': token}})
  np.testing.assert_array_equal(maps, same_maps)
  assert np.abs(logits - other_logits).max() > 1e-2


def test_a_token_is_an_entry_of_its_own_and_no_parameter():
  model, x = models_test.tiny('pvt_tiny')
  backbone, token = model.backbone, jnp.zeros(32)
  variables = jax.eval_shape(backbone.init, jax.random.key(0), x)
  names = traverse_util.flatten_dict(variables['params'], sep='/')
  assert all(name.startswith(('stage1_', 'stage2_')) for name in names)
  maps = jax.eval_shape(backbone.apply, variables, x)
  with_token = jax.eval_shape(
    lambda *args: backbone.apply(*args, token=token), variables, x
  )
  assert with_token.pop('token').shape == (4, 32)
  chex.assert_trees_all_equal_shapes(maps, with_token)
