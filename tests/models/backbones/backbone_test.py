"""What all backbones have in common: sizes, names and what can be frozen."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from acmix_jax import models
from tests.fixtures import official
from tests.models import models_test


def flatten(tree):
  return traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize('name', ['resnet26', 'san10', 'pvt_tiny', 'swin_tiny'])
def test_strides_and_channels_are_those_of_the_stages(name):
  backbone = models.make_backbone(name)
  images = jax.ShapeDtypeStruct((1, 256, 320, 3), jnp.float32)
  stages, _ = jax.eval_shape(
    backbone.init_with_output, jax.random.key(0), images
  )
  chex.assert_tree_shape_prefix(stages, (1,))
  shapes = {name: stage.shape[1:] for name, stage in stages.items()}
  assert shapes == {
    name: (256 // stride, 320 // stride, backbone.channels[name])
    for name, stride in backbone.strides.items()
  }


def test_a_small_stem_is_four_times_as_fine():
  backbone = models.make_backbone('resnet26', stem='small', width=16)
  assert list(backbone.strides.values()) == [1, 2, 4, 8]
  assert list(backbone.channels.values()) == [64, 128, 256, 512]


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('resnet26', {'frozen_stages': 1}),
    ('resnet26_acmix', {'batch_norm': 'frozen'}),
    ('san10', {'frozen_stages': 1, 'batch_norm': 'running'}),
    ('san10_acmix', {'batch_norm': 'frozen', 'widths': (64, 256)}),
    ('pvt_tiny', {'frozen_stages': 1}),
    ('swin_tiny', {'frozen_stages': 1}),
  ],
)
def test_frozen_parameters_are_those_without_gradient(name, fields):
  model, images = models_test.tiny(name)
  backbone = model.backbone.clone(**fields)
  # Random biases, too: no feature then stays below zero everywhere.
  variables = official.random_variables(backbone, images)

  def loss(params):
    stages, state = backbone.apply(
      {**variables, 'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(2)},
    )
    total = sum(
      (x * jax.random.normal(jax.random.key(3), x.shape)).sum()
      for x in stages.values()
    )
    return total, (stages, state)

  gradients, (stages, state) = jax.jit(jax.grad(loss, has_aux=True))(
    variables['params']
  )
  frozen = re.compile(backbone.frozen_parameters())
  for path, gradient in flatten(gradients).items():
    if path.endswith('position/bias'):
      continue  # It cancels in the softmax: its gradient is 0 anyway.
    assert (np.abs(gradient).max() == 0) == bool(frozen.fullmatch(path)), path

  updates = fields.get('batch_norm', 'batch') == 'batch'
  before = flatten(variables.get('batch_stats', {}))
  for path, statistic in flatten(state.get('batch_stats', {})).items():
    trained = updates and not frozen.fullmatch(path)
    assert (statistic != before[path]).any() == trained, path

  if 'frozen_stages' in fields:
    evaluated = jax.jit(backbone.apply)(variables, images)
    chex.assert_trees_all_close(
      stages['stage1'], evaluated['stage1'], rtol=1e-4, atol=1e-4
    )


def test_frozen_parameters_are_named_by_stage():
  def pattern(name, **fields):
    return models.make_backbone(name, **fields).frozen_parameters()

  assert pattern('resnet26') == pattern('swin_tiny') == ''
  stages = pattern('resnet26', frozen_stages=2)
  for name in ('stem_conv/kernel', 'stage2_1/norm1/bias'):
    assert re.fullmatch(stages, name)
  assert not re.fullmatch(stages, 'stage3_0/conv1/kernel')
  # With a prefix it is that of a whole model.
  assert re.fullmatch(f'backbone/{stages}', 'backbone/stage1_0/conv1/kernel')


@pytest.mark.parametrize('name', ['resnet26', 'san10', 'pvt_tiny', 'swin_tiny'])
@pytest.mark.parametrize('frozen_stages', [-1, 5])
def test_stages_that_there_are_not_cannot_be_frozen(name, frozen_stages):
  backbone = models.make_backbone(name, frozen_stages=frozen_stages)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  with pytest.raises(ValueError, match=f'={frozen_stages}; 0 to 4 are allowed'):
    jax.eval_shape(backbone.init, jax.random.key(0), images)


@pytest.mark.parametrize('name', ['resnet26', 'san10', 'pvt_tiny', 'swin_tiny'])
@pytest.mark.parametrize('sizes', [(), (0,), (2, 2, -1, 2)], ids=str)
def test_a_stage_without_blocks_is_refused(name, sizes):
  backbone = models.make_backbone(name, stage_sizes=sizes)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  message = re.escape(f': stage_sizes={sizes}; one or more whole numbers')
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(backbone.init, jax.random.key(0), images)


@pytest.mark.parametrize(
  'name, field, value',
  [
    ('resnet26', 'width', 0),
    ('resnet26', 'norm_groups', 0),
    ('san10', 'stem_size', -1),
    ('san10', 'widths', (0, 512, 1024, 2048)),
    ('pvt_tiny', 'patch_size', -1),
    ('pvt_tiny', 'image_size', 0),
    ('pvt_tiny', 'mlp_ratios', (0, 8, 4, 4)),
    ('swin_tiny', 'window_size', 0),
    ('swin_tiny', 'mlp_ratio', -1),
  ],
)
def test_a_size_that_leaves_nothing_is_named(name, field, value):
  backbone = models.make_backbone(name, **{field: value})
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  with pytest.raises(ValueError, match=f'{field.removesuffix("s")}s?='):
    jax.eval_shape(backbone.init, jax.random.key(0), images)


@pytest.mark.usefixtures('without_shape_checks')
@pytest.mark.parametrize(
  ('block_operators', 'message'),
  [
    (('stage1_0', 'attention'), "'stage1_0' of block_operators is no pair"),
    ((('stage5_*', 'conv'),), 'matches no block; there are stage1_0, stage2_0'),
    ((('stage1_*', 'shift'),), "operator='shift'; 'conv', 'attention', "),
  ],
)
def test_operators_of_blocks_that_there_cannot_be_are_refused(
  block_operators, message
):
  backbone = models.make_backbone(
    'resnet26_acmix', stage_sizes=(1, 1), block_operators=block_operators
  )
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(backbone.init, jax.random.key(0), images)


def test_the_first_pattern_says_the_operator_of_a_block():
  backbone = models.make_backbone(
    'san10_acmix',
    block_operators=(
      ('stage2_1', 'acmix'),
      ('stage[12]_*', 'shift_convolution'),
      ('stage4_*', 'attention'),
    ),
  )
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(backbone.init, jax.random.key(0), images)['params']
  for block in backbone.block_names:
    layer = params[block]['operator']
    found = ('depthwise_kernel' in layer, 'alpha' in layer)
    expected = (True, True)
    if block.startswith('stage4'):
      expected = (False, False)
    elif block in ('stage1_0', 'stage2_0'):
      expected = (True, False)
    assert found == expected, block


def test_a_model_of_no_classes_is_refused():
  with pytest.raises(ValueError, match='resnet26: num_classes=0; a whole'):
    models.create_model('resnet26', num_classes=0)


def test_a_backbone_takes_the_weights_of_a_classifier():
  model, images = models_test.tiny('swin_tiny')
  variables = jax.jit(model.init)(jax.random.key(0), images)
  backbone = {name: part['backbone'] for name, part in variables.items()}
  chex.assert_trees_all_equal(
    jax.jit(model.backbone.apply)(backbone, images),
    jax.jit(lambda *args: model.apply(*args, method='features'))(
      variables, images
    ),
  )
