"""The Swins against the official models."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from tests.fixtures import official

PARAMETERS = {
  'swin_small': 49_606_258,
  'swin_small_acmix': 50_345_080,
  'swin_tiny': 28_288_354,
  'swin_tiny_acmix': 28_649_908,
}
TINY = dict(
  stage_sizes=(2, 1), width=16, num_heads=(2, 2), window_size=4, mlp_ratio=2
)


def images(*shape):
  return jax.ShapeDtypeStruct((*shape, 3), jnp.float32)


@pytest.mark.parametrize('name', acmix_jax.list_models('swin*'))
def test_parameter_count_is_the_official_one(name):
  model = acmix_jax.create_model(name)
  variables = jax.eval_shape(model.init, jax.random.key(0), images(1, 224, 224))
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[name]


@pytest.mark.parametrize('name', ['swin_tiny', 'swin_tiny_acmix'])
def test_logits_equal_the_official_model(name):
  state_dict, x, want = official.model(name)
  variables = acmix_jax.from_torch(name, state_dict)
  logits = jax.jit(acmix_jax.create_model(name).apply)(variables, x)
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * want.std())


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
  jax.tree.map(
    np.testing.assert_array_equal,
    acmix_jax.from_torch('swin_tiny', renamed),
    acmix_jax.from_torch('swin_tiny', state_dict),
  )


@pytest.mark.parametrize('name', ['swin_tiny', 'swin_tiny_acmix'])
def test_features_are_maps_of_four_stages_at_any_size(name):
  model = acmix_jax.create_model(name)
  x = images(2, 163, 300)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  maps = jax.eval_shape(
    lambda v, x: model.apply(v, x, method='features'), variables, x
  )
  assert {key: value.shape for key, value in maps.items()} == {
    'stage1': (2, 41, 75, 96),
    'stage2': (2, 21, 38, 192),
    'stage3': (2, 11, 19, 384),
    'stage4': (2, 6, 10, 768),
  }
  logits = jax.eval_shape(model.apply, variables, x)
  assert logits.shape == (2, 1000)


def test_lists_of_another_length_are_an_error():
  model = acmix_jax.create_model('swin_tiny', num_heads=(3, 6))
  with pytest.raises(ValueError, match='num_heads=.* one for each of the 4'):
    jax.eval_shape(model.init, jax.random.key(0), images(1, 224, 224))


@pytest.mark.parametrize('mix', ['attention', 'acmix'])
def test_every_parameter_has_a_finite_gradient(mix):
  name = {'attention': 'swin_tiny', 'acmix': 'swin_tiny_acmix'}[mix]
  model = acmix_jax.create_model(name, 10, drop_path=0.1, **TINY)
  x = jax.random.normal(jax.random.key(1), (4, 36, 28, 3))
  variables = jax.jit(model.init)(jax.random.key(0), x)

  def loss(params):
    rngs = {'dropout': jax.random.key(2)}
    logits = model.apply({'params': params}, x, train=True, rngs=rngs)
    return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].mean()

  gradients = jax.jit(jax.grad(loss))(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path
