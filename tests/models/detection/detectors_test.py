"""Detectors of the registry: parameters, start values, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import acmix_jax
from acmix_jax.models import detection
from tests.fixtures import detectors

# As mmdetection builds them, of 80 classes; those of ACmix and SAN are sums of
# backbone, neck and heads.
PARAMETERS = {
  ('retinanet', 'resnet50'): 37_968_692,
  ('retinanet', 'pvt_tiny'): 22_964_212,
  ('retinanet', 'resnet26_acmix'): 22_899_476,
  ('mask_rcnn', 'resnet50'): 44_396_336,
  ('mask_rcnn', 'san10'): 30_680_428,
  ('mask_rcnn', 'pvt_small'): 44_138_224,
  ('mask_rcnn', 'swin_tiny'): 47_794_602,
  ('mask_rcnn', 'swin_small_acmix'): 69_851_328,
  ('cascade_mask_rcnn', 'swin_tiny'): 85_629_804,
  ('cascade_mask_rcnn', 'swin_tiny_acmix'): 85_991_358,
}
SIZES = np.array([[96, 128]])


@pytest.mark.parametrize(('head', 'backbone'), PARAMETERS)
def test_parameters_are_those_of_the_source(head, backbone):
  model = acmix_jax.create_model(head, backbone=backbone)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

  def init(images):
    return model.init(jax.random.key(0), images, method='networks')

  variables = jax.eval_shape(init, images)
  count = sum(x.size for x in jax.tree.leaves(variables['params']))
  assert count == PARAMETERS[head, backbone]


@pytest.mark.parametrize('head', ['retinanet', 'cascade_mask_rcnn'])
def test_results_have_fixed_shapes_at_any_size(head):
  model = acmix_jax.create_model(head, backbone='resnet26', dtype='bfloat16')
  images = jax.ShapeDtypeStruct((2, 100, 150, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  found = jax.eval_shape(model.apply, variables, images)
  assert found.boxes.shape == (2, 100, 4) and found.boxes.dtype == 'float32'
  assert found.scores.dtype == 'float32'
  masks = None if head == 'retinanet' else (2, 100, 28, 28)
  assert masks == (found.masks and found.masks.shape)


# Standard deviations of kernels, or halves of the widths of uniform ones.
NORMAL, UNIFORM = 'normal', 'uniform'
STARTS = {
  detection.RetinaNet: {
    'head/class_conv0/kernel': (NORMAL, 0.01),
    'head/box_conv1/kernel': (NORMAL, 0.01),
    'head/classes/kernel': (NORMAL, 0.01),
    'head/boxes/kernel': (NORMAL, 0.01),
    'neck/lateral0/kernel': (UNIFORM, (6 / (12 + 64)) ** 0.5),
    'neck/extra0/kernel': (UNIFORM, (6 / (9 * (24 + 64))) ** 0.5),
  },
  detection.CascadeMaskRCNN: {
    'rpn/conv/kernel': (NORMAL, 0.01),
    'rpn/objectness/kernel': (NORMAL, 0.01),
    'rpn/boxes/kernel': (NORMAL, 0.01),
    'box_heads_1/conv0/kernel': (NORMAL, (2 / (9 * 64)) ** 0.5),
    'box_heads_1/dense0/kernel': (UNIFORM, (6 / (49 * 64 + 32)) ** 0.5),
    'box_heads_1/classes/kernel': (NORMAL, 0.01),
    'box_heads_1/boxes/kernel': (NORMAL, 0.001),
    'mask_heads_2/conv0/kernel': (NORMAL, (2 / (9 * 64)) ** 0.5),
    'mask_heads_2/upsample/kernel': (NORMAL, (2 / (4 * 64)) ** 0.5),
    'mask_heads_2/classes_kernel': (NORMAL, (2 / 80) ** 0.5),
  },
}


@pytest.mark.parametrize('make', STARTS)
def test_start_values_are_those_of_the_source(make):
  fields = {'neck_features': 64}
  if make is detection.CascadeMaskRCNN:
    fields['box_hidden'] = 32
  model = make(detectors.Given(), 80, **fields)

  @jax.jit
  def init():
    return model.init(jax.random.key(0), detectors.blank(1), method='networks')

  flat = traverse_util.flatten_dict(init()['params'], sep='/')
  for name, (kind, width) in STARTS[make].items():
    if kind == NORMAL:
      # Within six times the error of an estimate.
      error = 6 / (2 * flat[name].size) ** 0.5
      np.testing.assert_allclose(flat[name].std(), width, rtol=error)
      assert np.abs(flat[name]).max() > 2.5 * width
    else:
      np.testing.assert_allclose(np.abs(flat[name]).max(), width, rtol=1e-2)
  for name, x in flat.items():
    if name.endswith('bias'):
      # The prior probability of a class is 1 %.
      want = -4.59511985 if name == 'head/classes/bias' else 0
      np.testing.assert_allclose(x, want, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  ('fields', 'change', 'message'),
  [
    ({'box_loss': 'iou'}, {}, "box_loss='iou'; 'l1', 'giou' are allowed"),
    ({'neck_features': 0}, {}, 'MaskRCNN: neck_features=0; a whole number'),
    ({'size_divisor': -32}, {}, 'MaskRCNN: size_divisor=-32'),
    ({'box_dense': 0}, {}, 'MaskRCNN: box_dense=0'),
    ({}, {'sizes': SIZES[0]}, r'Sizes of shape \(2,\) for 1 images'),
    ({}, {'masks': None}, 'learns masks: give masks and regions'),
    ({'images_per_group': 2}, {}, 'batch of 1 .* images_per_group=2'),
  ],
)
def test_what_cannot_work_is_an_error_before_compilation(
  fields, change, message, without_shape_checks
):
  fields = {'neck_features': 8, 'box_hidden': 8, **fields}
  model = detection.MaskRCNN(detectors.Given(), 2, **fields)
  truth = detection.GroundTruth(
    jnp.zeros((1, 1, 4)),
    jnp.zeros((1, 1), jnp.int32),
    jnp.zeros((1, 1), bool),
    change.get('masks', jnp.zeros((1, 1, 8, 8))),
    jnp.zeros((1, 1, 4)),
  )

  def init():
    return model.init(
      jax.random.key(0),
      detectors.blank(1),
      change.get('sizes', SIZES),
      truth,
      method='losses',
    )

  with pytest.raises(ValueError, match=message):
    jax.eval_shape(init)


def test_an_unknown_field_is_answered_with_the_nearest():
  with pytest.raises(ValueError, match="Did you mean 'rpn_samples'"):
    acmix_jax.create_model('mask_rcnn', backbone='resnet26', rpn_sample=2)
