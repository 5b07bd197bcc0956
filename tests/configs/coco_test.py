"""The recipes for COCO: their fields, rates, decay and first weights."""

import dataclasses
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax import models, weights
from acmix_jax.data.transforms import detection as transforms
from acmix_jax.models import detection
from acmix_jax.tasks import detection as detection_task
from acmix_jax.train import groups, optim
from acmix_jax.weights import names
from configs import coco
from tests.configs.image_size_test import from_flags

RECIPES = {
  'retinanet': (coco.retinanet, detection.RetinaNet),
  'mask_rcnn': (coco.mask_rcnn, detection.MaskRCNN),
  'cascade_mask_rcnn': (coco.cascade_mask_rcnn, detection.CascadeMaskRCNN),
}
# Thresholds and scales of the stages are what a cascade is; the rest of these
# every module has.
NOT_LISTED = ('stages', 'backbone', 'num_classes', 'parent', 'name')
BATCH = 16


@pytest.mark.parametrize('head', RECIPES)
@pytest.mark.parametrize('backbone', models.list_models())
def test_fields_of_head_and_backbone_are_listed(head, backbone):
  make, detector = RECIPES[head]
  config = make(backbone)
  model = config.model.to_dict()
  family = backbone.split('_')[0].rstrip('0123456789')
  of_backbone = (
    importlib.import_module(f'configs.{backbone}').get_config().model.to_dict()
  )
  of_head = {
    field.name: field.default
    for field in dataclasses.fields(detector)
    if field.name not in NOT_LISTED
  }
  changed = {
    'resnet': {'frozen_stages': 1, 'batch_norm': 'running'},
    'san': {'frozen_stages': 1, 'batch_norm': 'running'},
    'pvt': {'drop_path': 0.1},
    'swin': {'drop_path': 0.0 if 'cascade' in head else 0.1},
  }[family]
  own = {'name': head, 'backbone': backbone, 'num_classes': 80}
  assert model == of_backbone | of_head | changed | own
  created = models.create_model(**config.model)
  assert isinstance(created, detector)
  assert created.backbone.frozen_stages == config.model.frozen_stages


def test_fields_are_set_by_flags():
  config = from_flags(
    'coco_mask_rcnn:swin_tiny_acmix,3x',
    'model.kernel_conv=5',
    'model.rpn_border=0.0',
    'model.images_per_group=0',
    'model.remat=block',
    'data.canvases=((96, 128),)',
    'data.train_scales=((128, 96), (96, 64))',
    'eval.results_file=results.json',
  )
  task = detection_task.Detection(config)
  assert (task.model.rpn_border, task.model.images_per_group) == (0, 0)
  assert task.model.backbone.remat == 'block'
  assert [x['image'].shape for x in task.batch_shapes('train')] == [
    (16, 96, 128, 3)
  ]
  assert (config.model.drop_path, config.train.num_epochs) == (0.2, 36)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ('swin_tny', "'swin_tny' is .* mean 'swin_tiny'"),
    ('coco', "'coco' is unknown"),
    ('swin_tiny,2x', r"Schedule '2x' .*'swin_tiny,1x'.*'swin_tiny,3x'"),
    ('swin_tiny,3x,1x', "Schedule '3x,1x'"),
  ],
)
def test_unknown_arguments_are_refused(arguments, message):
  for make, _ in RECIPES.values():
    with pytest.raises(ValueError, match=message):
      make(arguments)


def _rates(config, steps, per_epoch=1000):
  schedule = optim.make_schedule(
    config.optim,
    num_steps=config.train.num_epochs * per_epoch,
    steps_per_epoch=per_epoch,
    batch_size=config.train.batch_size,
  )
  return np.asarray(jax.vmap(schedule)(jnp.asarray(steps)))


@pytest.mark.parametrize(
  'arguments, head, optimizer, rate, decay',
  [
    ('resnet50_acmix', 'mask_rcnn', 'sgd', 0.01, 1e-4),
    ('san19', 'retinanet', 'sgd', 0.01, 1e-4),
    ('pvt_tiny', 'retinanet', 'adamw', 1e-4, 1e-4),
    ('pvt_tiny', 'mask_rcnn', 'adamw', 2e-4, 1e-4),
    ('swin_tiny', 'mask_rcnn', 'adamw', 1e-4, 0.05),
    ('swin_small_acmix', 'cascade_mask_rcnn', 'adamw', 1e-4, 0.05),
  ],
)
@pytest.mark.parametrize(
  'schedule, epochs, steps', [('1x', 12, (8, 11)), ('3x', 36, (27, 33))]
)
def test_rates_of_the_sources(
  arguments, head, optimizer, rate, decay, schedule, epochs, steps
):
  config = RECIPES[head][0](f'{arguments},{schedule}')
  assert config.optim.name == optimizer
  assert config.optim.weight_decay == decay
  assert config.optim.clip_norm == 0
  assert (config.train.num_epochs, config.train.batch_size) == (epochs, BATCH)
  first, second = (1000 * step for step in steps)
  moments = [0, 499, 500, first - 1, first, second - 1, second]
  # mmcv: rate * (1 - (1 - i / 500) * (1 - 0.001)) before update 500.
  factors = [0.001, 0.998002, 1, 1, 0.1, 0.1, 0.01]
  np.testing.assert_allclose(
    _rates(config, moments), rate * np.array(factors), rtol=1e-5
  )
  config.train.batch_size = 4 * BATCH
  assert _rates(config, [700])[0] == pytest.approx(4 * rate)


@pytest.mark.parametrize(
  'arguments, several',
  [
    ('pvt_small', False),
    ('resnet50', False),
    ('swin_tiny', True),
    ('pvt_small,3x', True),
    ('resnet50_acmix,3x', True),
  ],
)
def test_images_have_the_sizes_of_the_sources(arguments, several):
  data = coco.mask_rcnn(arguments).data
  shorter = [min(scale) for scale in data.train_scales]
  assert shorter == ([*range(480, 801, 32)] if several else [800])
  assert {max(scale) for scale in data.train_scales} == {1333}
  assert [min(x) for x in data.crop_scales] == [400, 500, 600] * several
  assert (data.crop_range, data.eval_scale) == ((384, 600), (1333, 800))
  assert all(max(x) == 1344 and min(x) == 800 for x in data.canvases)
  transforms.train_transform(data)
  transforms.eval_transform(data)


def _params(config):
  model = models.create_model(**config.model)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  init = lambda key, x: model.init(key, x, method='networks')  # noqa: E731
  return jax.eval_shape(init, jax.random.key(0), images)['params']


def _not_decayed(config):
  rules = groups.parameter_rules(_params(config), config.optim.groups)
  assert all(rule.learning_rate == 1 for rule in rules.values())
  return {path for path, rule in rules.items() if not rule.weight_decay}


def test_swin_decays_all_but_norms_and_relative_positions():
  kept = _not_decayed(coco.cascade_mask_rcnn('swin_tiny'))
  # 2 of each of 12 blocks and of the patches, 3 merges, 4 outputs: scale and
  # bias; and 12 tables.
  assert len(kept) == 2 * (2 * 12 + 1 + 3 + 4) + 12
  assert all(path.startswith('backbone/') for path in kept)
  with_acmix = _not_decayed(coco.cascade_mask_rcnn('swin_tiny_acmix'))
  plain = {
    path.replace('operator/attention', 'operator') for path in with_acmix
  }
  assert plain == kept


@pytest.mark.parametrize('backbone', ['pvt_tiny_acmix', 'resnet26_acmix'])
def test_everything_decays_elsewhere(backbone):
  assert _not_decayed(coco.retinanet(backbone)) == set()


def test_the_stem_and_the_first_stage_of_a_resnet_stay():
  config = coco.retinanet('resnet26')
  task = detection_task.Detection(config)
  rules = groups.parameter_rules(
    _params(config), config.optim.groups, task.frozen
  )
  frozen = {path for path, rule in rules.items() if rule.frozen}
  assert frozen == {
    path for path in rules if re.match(r'backbone/(stem|stage1)_', path)
  }
  # The statistics stay everywhere; scales and biases of later stages do not.
  assert 'backbone/stage2_0/norm1/scale' in rules.keys() - frozen


def _start_from(config, trained):
  """Names of the variables that do not come from `trained`."""
  task = detection_task.Detection(config)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  zeros = {
    name: np.zeros(x.shape, x.dtype)
    for name, x in names.flatten(shapes).items()
  }
  ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), trained)
  assigned = weights.assign(names.unflatten(zeros), ones, task.replaceable)
  return {name for name, x in names.flatten(assigned).items() if not x.all()}


@pytest.mark.parametrize('backbone', ['swin_tiny', 'pvt_tiny', 'resnet26'])
def test_a_classifier_gives_the_backbone_its_weights(backbone):
  shallow = {'stage_sizes': (1, 1, 1, 1)}
  config = coco.mask_rcnn(backbone)
  config.model.update(shallow)
  classifier = models.create_model(backbone, **shallow)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  trained = jax.eval_shape(classifier.init, jax.random.key(0), images)
  fresh = _start_from(config, trained)
  in_backbone = {name for name in fresh if '/backbone/' in name}
  assert all(re.search(r'stage\d_norm/', name) for name in in_backbone)
  assert len(in_backbone) == (8 if backbone == 'swin_tiny' else 0)
  assert {name.split('/')[1] for name in fresh - in_backbone} == {
    *('neck', 'rpn', 'box_heads_0', 'mask_heads_0')
  }


@pytest.mark.parametrize('head', RECIPES)
def test_a_detector_of_other_classes_gives_all_but_its_classes(head):
  config = RECIPES[head][0]('resnet26')
  config.model.stage_sizes = (1, 1, 1, 1)
  trained = jax.eval_shape(
    detection_task.Detection(config).init, jax.random.key(0)
  )
  config.model.num_classes = 7
  fresh = _start_from(config, trained)
  assert fresh
  assert all(
    re.search(r'(classes|boxes)(_?(kernel|bias)|/.*)$', name) for name in fresh
  )
  assert not any('rpn' in name for name in fresh)
