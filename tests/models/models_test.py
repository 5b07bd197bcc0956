"""What all families have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from tests.fixtures import official

# Fields that make a network of seconds of each family, and its image.
TINY = {
  'resnet': (dict(stage_sizes=(1, 1), width=8), (64, 56)),
  'san': (
    dict(
      stage_sizes=(1, 1),
      widths=(64, 64),
      kernel_sizes=(3, 5),
      stem_size=1,
      stem_width=32,
    ),
    (24, 24),
  ),
  'pvt': (
    dict(
      stage_sizes=(1, 2),
      widths=(16, 32),
      num_heads=(1, 2),
      mlp_ratios=(2, 2),
      reductions=(2, 1),
      image_size=32,
      drop_path=0.1,
    ),
    (40, 32),
  ),
  'swin': (
    dict(
      stage_sizes=(2, 1),
      width=16,
      num_heads=(2, 2),
      window_size=4,
      mlp_ratio=2,
      drop_path=0.1,
    ),
    (36, 28),
  ),
}
# The operators of each family; configs_test has the size of every model.
NAMES = [
  'resnet26',
  'resnet26_attention',
  'resnet26_acmix',
  'san10',
  'san10_acmix',
  'pvt_tiny',
  'pvt_tiny_acmix',
  'swin_tiny',
  'swin_tiny_acmix',
]


def tiny(name):
  """A small model of a family and random images for it."""
  family = next(family for family in TINY if name.startswith(family))
  fields, size = TINY[family]
  images = jax.random.normal(jax.random.key(1), (4, *size, 3))
  return acmix_jax.create_model(name, 10, **fields), images


@pytest.mark.parametrize(
  'name',
  [
    'resnet26',
    'resnet26_acmix',
    'san10',
    'pvt_tiny',
    'swin_tiny',
    'swin_tiny_acmix',
  ],
)
def test_logits_equal_the_official_model(name):
  state_dict, images, want = official.model(name)
  variables = acmix_jax.from_torch(name, state_dict)
  logits = jax.jit(acmix_jax.create_model(name).apply)(variables, images)
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * want.std())


@pytest.mark.parametrize(
  ('name', 'size', 'widths', 'sizes'),
  [
    (
      'resnet26_acmix',
      (132, 163),
      (256, 512, 1024, 2048),
      [(33, 41), (17, 21), (9, 11), (5, 6)],
    ),
    (
      'san10_acmix',
      (160, 288),
      (256, 512, 1024, 2048),
      [(40, 72), (20, 36), (10, 18), (5, 9)],
    ),
    (
      'pvt_tiny_acmix',
      (160, 300),
      (64, 128, 320, 512),
      [(40, 75), (20, 37), (10, 18), (5, 9)],
    ),
    (
      'swin_tiny_acmix',
      (163, 300),
      (96, 192, 384, 768),
      [(41, 75), (21, 38), (11, 19), (6, 10)],
    ),
  ],
)
@pytest.mark.parametrize('suffix', ['_acmix', ''])
def test_features_are_a_pyramid_at_any_size(name, size, widths, sizes, suffix):
  model = acmix_jax.create_model(name.removesuffix('_acmix') + suffix)
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  stages = jax.eval_shape(
    lambda variables, images: model.apply(variables, images, method='features'),
    variables,
    images,
  )
  assert {name: stage.shape for name, stage in stages.items()} == {
    f'stage{i + 1}': (2, *sizes[i], widths[i]) for i in range(4)
  }
  logits = jax.eval_shape(model.apply, variables, images)
  assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)


@pytest.mark.parametrize(
  'name',
  [  # san10 is as with ACmix, less one path.
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'san10'))
    for name in NAMES
  ],
)
def test_every_parameter_has_a_finite_gradient(name):
  model, images = tiny(name)
  variables = jax.jit(model.init)(jax.random.key(0), images)

  def loss(params):
    logits, _ = model.apply(
      {**variables, 'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(2)},
    )
    return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].mean()

  gradients = jax.jit(jax.grad(loss))(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(leaf).all(), path
    if 'position/bias' in '/'.join(entry.key for entry in path):
      continue  # It cancels in the softmax, but for rounding.
    # The head of PVT reads the token alone, which the last convolution skips.
    unseen = name == 'pvt_tiny_acmix' and path[1].key == 'stage2_1'
    convolution = ('beta', 'fc_kernel', 'depthwise_kernel')
    unseen = unseen and path[-1].key in convolution
    assert (np.abs(leaf).max() > 0) != unseen, path


def test_an_unknown_name_or_field_is_answered_with_the_nearest():
  with pytest.raises(KeyError, match="Did you mean 'resnet50_acmix'"):
    acmix_jax.create_model('resnet50_acmx')
  with pytest.raises(ValueError, match="Did you mean 'num_heads'"):
    acmix_jax.create_model('resnet50_acmix', num_head=2)


@pytest.mark.parametrize(
  ('name', 'size', 'fields', 'message'),
  [
    ('resnet50_acmix', (64, 64), {}, 'smallest side that works is 4'),
    ('resnet26', (64, 64), {'stem': 'tiny'}, "'imagenet', 'small' are allowed"),
    ('san10', (96, 96), {}, '3x3 map cannot be reflected by 3'),
    ('san10', (224, 224), {'widths': (32, 64)}, 'widths=.* each of the 4'),
    ('pvt_tiny', (31, 32), {}, '7x8 map has no patch of 8x8'),
    ('pvt_tiny', (224, 224), {'drop_path': 1.0}, 'drop_path=1.0'),
    ('swin_tiny', (224, 224), {'num_heads': (3, 6)}, 'num_heads=.* of the 4'),
  ],
)
def test_what_cannot_work_is_an_error_before_compilation(
  name, size, fields, message
):
  model = acmix_jax.create_model(name, **fields)
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), images)
