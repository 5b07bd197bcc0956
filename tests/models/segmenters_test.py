"""Dense heads on every backbone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from acmix_jax import models
from acmix_jax.ops import resize
from tests.fixtures import official
from tests.models import models_test

# Parameters by part at 150 classes, of the published models: mmsegmentation
# with the backbones of PVT and Swin, and with torchvision's.
PARAMETERS = {
  ('semantic_fpn', 'pvt_tiny'): (12_714_752, 2_623_488, 1_643_158, 0),
  ('semantic_fpn', 'pvt_small'): (23_971_328, 2_623_488, 1_643_158, 0),
  ('semantic_fpn', 'resnet50'): (23_508_032, 3_344_384, 1_643_158, 0),
  ('upernet', 'swin_tiny'): (27_520_698, 0, 31_497_366, 923_798),
  ('upernet', 'swin_small'): (48_838_602, 0, 31_497_366, 923_798),
  ('upernet', 'swin_tiny_acmix'): (27_882_252, 0, 31_497_366, 923_798),
  ('upernet', 'swin_small_acmix'): (49_577_424, 0, 31_497_366, 923_798),
}
SEGMENTERS = ('semantic_fpn', 'upernet')
# Fields of small heads.
SMALL = {
  'semantic_fpn': dict(neck_features=8, head_features=6),
  'upernet': dict(head_features=8, auxiliary_features=6),
}


def tiny(head, backbone, **overrides):
  """A small segmenter and four random images."""
  family = next(x for x in models_test.TINY if backbone.startswith(x))
  fields, size = models_test.TINY[family]
  model = acmix_jax.create_model(
    head, 5, backbone=backbone, **fields, **SMALL[head], **overrides
  )
  return model, jax.random.normal(jax.random.key(1), (4, *size, 3))


def shapes(model, size):
  """Shapes of the variables and of one image."""
  image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image), image


@pytest.mark.parametrize(('head', 'backbone'), PARAMETERS)
def test_parameters_are_the_published_ones(head, backbone):
  model = acmix_jax.create_model(head, backbone=backbone)
  variables, _ = shapes(model, (64, 64))
  parts = {
    part: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for part, tree in variables['params'].items()
  }
  parts = tuple(
    parts.get(part, 0) for part in ('backbone', 'neck', 'head', 'auxiliary')
  )
  assert parts == PARAMETERS[head, backbone]


@pytest.mark.parametrize(
  ('head', 'backbone'),
  [('semantic_fpn', 'pvt_tiny'), ('upernet', 'swin_tiny')],
)
def test_segmenters_equal_the_official_ones(head, backbone):
  state_dict, images, arrays, spec = official.segmenter(f'{head}_{backbone}')
  fields = dict(num_classes=spec['num_classes'], backbone=backbone)
  variables = acmix_jax.from_torch(head, state_dict, **fields)
  model = acmix_jax.create_model(head, **fields)

  @jax.jit
  def run(variables, images):
    stages = model.apply(variables, images, method='features')
    logits = model.apply(
      variables, images, train=False, method='training_logits'
    )
    return stages['stage4'], logits

  stage4, logits = run(variables, images)
  official.assert_relative(stage4, arrays['stage4'], 2e-5)
  official.assert_relative(logits['head'], arrays['logits'], 2e-5)
  if 'aux_logits' in arrays:
    official.assert_relative(logits['auxiliary'], arrays['aux_logits'], 2e-5)
  full = resize.bilinear(logits['head'], images.shape[1:3])
  full = resize.bilinear(full, tuple(spec['original']))
  np.testing.assert_array_equal(full.argmax(axis=-1), arrays['argmax'])


@pytest.mark.parametrize('number', range(len(models_test.NAMES)))
def test_any_size_gives_logits_of_a_quarter(number):
  backbone = models_test.NAMES[number]
  head = SEGMENTERS[number % 2]
  model = acmix_jax.create_model(
    head, 3, backbone=backbone, stage_sizes=(1, 1, 1, 1)
  )
  variables, image = shapes(model, (130, 203))
  logits = jax.eval_shape(
    functools.partial(model.apply, method='training_logits', train=False),
    variables,
    image,
  )
  want = {'head': (1, 33, 51, 3)}
  if head == 'upernet':
    want['auxiliary'] = (1, 9, 13, 3)
  assert {name: x.shape for name, x in logits.items()} == want


def test_every_head_takes_every_backbone():
  assert len(models.list_models()) == 23
  for head in SEGMENTERS:
    for name in models.list_models():
      model = acmix_jax.create_model(head, backbone=name)
      backbone = models.make_backbone(name)
      assert isinstance(model.backbone, type(backbone))
      for field in ('stage_sizes', 'operator'):
        assert getattr(model.backbone, field) == getattr(backbone, field)


@pytest.mark.parametrize(
  ('head', 'backbone', 'dtype'),
  [
    ('semantic_fpn', 'pvt_tiny', 'float32'),
    ('upernet', 'swin_tiny_acmix', 'bfloat16'),
  ],
)
def test_every_parameter_has_a_finite_gradient(head, backbone, dtype):
  model, images = tiny(head, backbone)
  model = model.clone(
    backbone=model.backbone.clone(dtype=jnp.dtype(dtype), remat='block')
  )
  variables = official.random_variables(model, images)

  def loss(params):
    logits, state = model.apply(
      {**variables, 'params': params},
      images,
      method='training_logits',
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(2)},
    )
    return sum((x * jnp.cos(x)).mean() for x in logits.values()), state

  gradients, state = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    name = '/'.join(entry.key for entry in path)
    assert np.isfinite(leaf).all(), name
    unused = name.endswith('token_position')
    assert (np.abs(leaf).max() == 0) == unused, name
  chex.assert_trees_all_equal_structs(
    state, {'batch_stats': variables['batch_stats']}
  )


def test_padding_of_the_images_is_the_mean_colour_and_cut_off():
  model, images = tiny('semantic_fpn', 'san10')
  images = images[:1, :21, :18]
  padded = jnp.pad(images, ((0, 0), (0, 3), (0, 6), (0, 0)))
  variables = official.random_variables(model, images)
  got, whole = (jax.jit(model.apply)(variables, x) for x in (images, padded))
  assert got.shape[1:3] == (6, 5)
  np.testing.assert_allclose(got, whole[:, :6, :5], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, "upernet needs a backbone, .*backbone='resnet50_acmix'"),
    ({'backbone': 'swin_tny'}, "Backbone 'swin_tny' is .* mean 'swin_tiny'"),
    ({'backbone': 'upernet'}, "Backbone 'upernet' is unknown"),
    (
      {'backbone': 'swin_tiny', 'head_feature': 8},
      "Field of upernet on swin_tiny .* mean 'head_features'",
    ),
    ({'backbone': 'resnet26', 'window_size': 8}, "'window_size' is unknown"),
    ({'backbone': 'swin_tiny', 'neck_start': 'xavier'}, 'is unknown'),
    ({'backbone': 'swin_tiny', 'head_features': 0}, 'upernet: head_features=0'),
    ({'backbone': 'swin_tiny', 'bins': ()}, r'upernet: bins=\(\); one or more'),
    ({'backbone': 'swin_tiny', 'dropout': 1.0}, '0 <= dropout < 1 is needed'),
  ],
)
def test_what_cannot_be_made_is_answered(fields, message):
  with pytest.raises(ValueError, match=message):
    acmix_jax.create_model('upernet', **fields)


def test_a_name_is_a_classifier_or_a_head():
  with pytest.raises(KeyError, match="mean 'upernet'"):
    acmix_jax.create_model('upernett', backbone='swin_tiny')
  with pytest.raises(ValueError, match='a classifier and takes no backbone'):
    acmix_jax.create_model('swin_tiny', backbone='swin_tiny')
  assert set(SEGMENTERS) < set(models.list_heads())
  assert not set(models.list_heads()) & set(models.list_models())


def test_fields_of_head_and_backbone_are_taken_together():
  model = acmix_jax.create_model(
    'semantic_fpn',
    backbone='swin_tiny',
    dtype='bfloat16',
    drop_path=0.3,
    neck_start='xavier',
    dropout=0.2,
  )
  assert model.head.num_classes == 150
  assert model.backbone.drop_path == 0.3 and model.backbone.dense
  assert model.neck.start == 'xavier' and model.head.dropout == 0.2
  for part in (model.backbone, model.neck, model.head):
    assert part.dtype == jnp.bfloat16
