"""The ResNets against the official and torchvision models."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from tests.fixtures import seeded

_FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'models'
PARAMETERS = {
  'resnet26': 13_696_552,
  'resnet26_attention': 10_336_600,
  'resnet26_acmix': 10_487_816,
  'resnet38': 19_626_792,
  'resnet38_attention': 14_181_480,
  'resnet38_acmix': 14_410_896,
  'resnet50': 25_557_032,
  'resnet50_attention': 18_026_360,
  'resnet50_acmix': 18_333_976,
}


def load(name):
  """Official weights, images and logits of a fixture."""
  stem = _FIXTURES / f'{name}_224x224_s1'
  spec = json.loads(stem.with_suffix('.json').read_text())
  state_dict = {
    key: seeded.parameter(key, shape)
    for key, shape in spec['parameters'].items()
  }
  images = seeded.images(
    spec['seed'], spec['batch'], spec['height'], spec['width']
  )
  return state_dict, images, np.load(stem.with_suffix('.npz'))['logits']


@pytest.mark.parametrize('name', acmix_jax.list_models('resnet*'))
def test_parameter_count_is_the_official_one(name):
  model = acmix_jax.create_model(name)
  variables = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[name]


@pytest.mark.parametrize('name', ['resnet26', 'resnet26_acmix'])
def test_logits_equal_the_official_model(name):
  state_dict, images, want = load(name)
  variables = acmix_jax.from_torch(name, state_dict)
  logits = jax.jit(acmix_jax.create_model(name).apply)(variables, images)
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * want.std())


def test_from_torch_names_all_that_does_not_fit():
  state_dict, _, _ = load('resnet26_acmix')
  del state_dict['layer2.1.conv2.rate1']
  state_dict['layer9.conv.weight'] = np.zeros(3)
  state_dict['fc.weight'] = state_dict['fc.weight'][:10]
  with pytest.raises(ValueError) as error:
    acmix_jax.from_torch('resnet26_acmix', state_dict)
  for entry in (
    '3 entries',
    'missing: layer2.1.conv2.rate1',
    'extra: layer9.conv.weight',
    'misshapen: fc.weight (10, 2048)',
  ):
    assert entry in str(error.value)


def test_attention_takes_the_weights_of_acmix_without_the_convolution():
  state_dict, _, _ = load('resnet26_acmix')
  paths = ('rate1', 'rate2', 'fc.weight', 'dep_conv.weight')
  attention = {
    key: value
    for key, value in state_dict.items()
    if key == 'fc.weight' or not key.endswith(paths)
  }
  variables = acmix_jax.from_torch('resnet26_attention', attention)
  np.testing.assert_array_equal(
    variables['params']['stage1_0']['mix']['query']['kernel'],
    state_dict['layer1.0.conv2.conv1.weight'][:, :, 0, 0].T,
  )


def test_shift_kernels_survive_the_construction_of_the_model():
  model = acmix_jax.create_model(
    'resnet26_acmix', stage_sizes=(1, 1), width=8, num_classes=2
  )
  params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  for stage in ('stage1_0', 'stage2_0'):
    shifts = np.asarray(params[stage]['mix']['shifts'])
    assert set(np.unique(shifts)) == {0, 1}
    assert (shifts.sum(axis=(0, 1)) == 1).all()


@pytest.mark.parametrize('size', [(96, 128), (100, 131)])
def test_features_are_a_pyramid_for_any_size(size):
  model = acmix_jax.create_model('resnet50_acmix', kernel_att=3)
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  stages = jax.eval_shape(
    lambda variables, images: model.apply(variables, images, method='features'),
    variables,
    images,
  )
  shapes = {name: stage.shape for name, stage in stages.items()}
  assert shapes == {
    f'stage{i + 1}': (
      2,
      *(-(-side // (4 * 2**i)) for side in size),
      256 * 2**i,
    )
    for i in range(4)
  }


def test_an_unknown_name_or_field_is_answered_with_the_nearest():
  with pytest.raises(KeyError, match="Did you mean 'resnet50_acmix'"):
    acmix_jax.create_model('resnet50_acmx')
  with pytest.raises(ValueError, match="Did you mean 'num_heads'"):
    acmix_jax.create_model('resnet50_acmix', num_head=2)
  with pytest.raises(ValueError, match="'imagenet', 'small' are allowed"):
    model = acmix_jax.create_model('resnet26', stem='tiny')
    model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_too_small_images_are_refused_before_any_compilation():
  model = acmix_jax.create_model('resnet50_acmix')
  with pytest.raises(ValueError, match='smallest side that works is 4'):
    jax.eval_shape(
      model.init,
      jax.random.key(0),
      jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )
