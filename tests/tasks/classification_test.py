"""Targets, loss and metrics of classification, worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.tasks import classification
from acmix_jax.train import groups
from configs import imagenet
from tests import fake_data


@pytest.mark.parametrize(
  'over, label, other',
  [('others', 0.9, 0.1 / 3), ('all', 0.9 + 0.1 / 4, 0.1 / 4)],
)
def test_smoothed_labels(over, label, other):
  targets = classification.smooth_labels(jnp.array([2, 0]), 4, 0.1, over)
  expected = [[other, other, label, other], [label, other, other, other]]
  np.testing.assert_allclose(targets, expected, rtol=1e-6)
  np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize('over', ['others', 'all'])
def test_smoothing_leaves_a_single_class_alone(over):
  targets = classification.smooth_labels(jnp.array([0, 0]), 1, 0.1, over)
  np.testing.assert_array_equal(targets, [[1], [1]])


def test_cross_entropy_of_smoothed_labels():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]], jnp.float32)) + 7
  targets = classification.smooth_labels(jnp.array([1]), 3, 0.2, 'others')
  expected = -(0.1 * math.log(0.5) + 0.8 * math.log(0.3) + 0.1 * math.log(0.2))
  loss = classification.cross_entropy(logits.astype(jnp.bfloat16), targets)
  assert loss.dtype == jnp.float32
  assert loss[0] == pytest.approx(expected, rel=2e-2)
  loss = classification.cross_entropy(logits, targets)
  assert loss[0] == pytest.approx(expected, rel=1e-5)


def test_in_top_counts_ranks_and_takes_few_classes():
  logits = jnp.array([[3.0, 2.0, 1.0, 0.0]] * 4)
  labels = jnp.arange(4)
  top = lambda k: classification.in_top(logits, labels, k).tolist()  # noqa: E731
  assert top(1) == [1, 0, 0, 0]
  assert top(3) == [1, 1, 1, 0]
  assert top(5) == [1, 1, 1, 1]


def test_evaluator_counts_only_what_the_mask_shows():
  evaluator = classification.Evaluator()
  evaluator.update(
    {
      'loss': np.array([1.0, 2.0, 100.0], np.float32),
      'top1': np.array([1.0, 0.0, 1.0], np.float32),
      'top5': np.array([1.0, 1.0, 1.0], np.float32),
      'mask': np.array([True, True, False]),
    }
  )
  evaluator.update(
    {
      'loss': np.array([6.0, 50.0], np.float32),
      'top1': np.array([0.0, 1.0], np.float32),
      'top5': np.array([0.0, 1.0], np.float32),
      'mask': np.array([True, False]),
    }
  )
  assert evaluator.result() == pytest.approx(
    {'loss': 3.0, 'top1': 1 / 3, 'top5': 2 / 3, 'count': 3}
  )


def test_evaluation_without_an_image_is_an_error():
  evaluator = classification.Evaluator()
  with pytest.raises(ValueError, match='no image .* data.dir'):
    evaluator.result()
  nothing = np.full(2, np.nan, np.float32)
  evaluator.update(
    {'loss': nothing, 'top1': nothing, 'top5': nothing, 'mask': nothing > 0}
  )
  with pytest.raises(ValueError, match='no image .* data.dir'):
    evaluator.result()


def small_config():
  return imagenet.resnet('resnet26', stage_sizes=(1,))


def test_data_of_one_class_is_refused(tmp_path):
  fake_data.write_class_folders(tmp_path, classes=('cat',))
  config = small_config()
  config.data.name, config.data.dir = 'folder', str(tmp_path)
  task = classification.Classification(config)
  with pytest.raises(ValueError, match=f"one class 'cat' .{tmp_path}/val"):
    _ = task.steps_per_epoch


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('eval_resize', 200, 'eval_resize=200 is less than data.image_size=224'),
    ('image_size', 0, 'data.image_size=0'),
    ('crop_scale', (0.5, 0.1), 'data.crop_scale'),
    ('interpolation', 'nearest', 'bilinear, bicubic'),
    ('flip', 2.0, 'data.flip=2.0'),
  ],
)
def test_transforms_that_cannot_work_are_refused_at_once(field, value, message):
  config = small_config()
  config.data[field] = value
  with pytest.raises(ValueError, match=message):
    _ = classification.Classification(config).steps_per_epoch


def test_evaluation_looks_at_no_field_of_training():
  config = small_config()
  config.data.crop_scale = (0.0, 1.0)
  config.augment.mixup_alpha = -1.0
  config.loss.label_smoothing = 2.0
  task = classification.Classification(config)
  jax.eval_shape(task.init, jax.random.key(0))
  assert task.batch_shapes('eval')
  for field, whole in (
    ('data.crop_scale', (0.5, 1.0)),
    ('augment.mixup_alpha', 0.0),
    ('loss.label_smoothing', 0.0),
  ):
    task = classification.Classification(config)
    with pytest.raises(ValueError, match=field):
      task.batch_shapes('train')
    config.update_from_flattened_dict({field: whole})


@pytest.mark.parametrize('name', ['scenes', 'coco'])
def test_data_without_classes_is_named(name):
  config = small_config()
  config.data.name = name
  task = classification.Classification(config)
  with pytest.raises(ValueError, match=f"'{name}' has no classes.* folder"):
    _ = task.steps_per_epoch


@pytest.mark.parametrize(
  'field, values, message',
  [
    ('std', (0.2, 0.0, 0.2), r'data.std=\(0.2, 0.0, 0.2\) .* above 0'),
    ('std', (0.2, math.nan, 0.2), 'data.std='),
    ('mean', (0.5, math.inf, 0.5), 'data.mean='),
    ('mean', (0.5,), 'data.mean='),
  ],
)
def test_pixels_that_cannot_be_normalised_are_refused(field, values, message):
  config = imagenet.resnet('resnet26', stage_sizes=(1, 2, 4, 1))
  config.data[field] = values
  with pytest.raises(ValueError, match=message):
    classification.Classification(config)


def test_what_the_backbone_freezes_is_no_parameter_to_train():
  config = imagenet.resnet('resnet26', stage_sizes=(1, 1))
  config.model.update(width=8, frozen_stages=1)
  task = classification.Classification(config)
  params = jax.eval_shape(task.init, jax.random.key(0))['params']
  rules = groups.parameter_rules(params, config.optim.groups, task.frozen)
  modules = {(path.split('/')[1], rule.frozen) for path, rule in rules.items()}
  assert modules == {
    ('stem_conv', True),
    ('stem_norm', True),
    ('stage1_0', True),
    ('stage2_0', False),
    ('dense', False),
  }
