"""The recipes for ADE20K: their fields, rates, decay and first weights."""

import importlib
import inspect
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax import models, weights
from acmix_jax.models import segmenters
from acmix_jax.tasks import segmentation
from acmix_jax.train import groups, optim
from acmix_jax.weights import names
from configs import ade20k
from tests.configs.image_size_test import from_flags

RATES = json.loads(
  (
    pathlib.Path(__file__).parents[1] / 'fixtures' / 'learning_rates.json'
  ).read_text()
)


@pytest.mark.parametrize('head', ['semantic_fpn', 'upernet'])
@pytest.mark.parametrize('backbone', models.list_models())
def test_fields_of_head_and_backbone_are_listed(head, backbone):
  config = importlib.import_module(f'configs.ade20k_{head}').get_config(
    backbone
  )
  listed = config.model.to_dict()
  model = models.create_model(**listed)
  assert (listed.pop('name'), listed.pop('backbone')) == (head, backbone)
  classifier = importlib.import_module(f'configs.{backbone}').get_config().model
  of_head = {
    name: parameter.default
    for name, parameter in inspect.signature(
      getattr(segmenters, head)
    ).parameters.items()
    if parameter.kind == parameter.KEYWORD_ONLY
  }
  expected = classifier.to_dict() | of_head | {'num_classes': 150}
  del expected['name']
  transformer = backbone.startswith(('pvt', 'swin'))
  if transformer:
    expected['drop_path'] = {'semantic_fpn': 0.1, 'upernet': 0.3}[head]
  assert listed == expected
  assert model.head.num_classes == 150
  assert config.optim.name == ('adamw' if transformer else 'sgd')


def test_fields_are_set_by_flags():
  config = from_flags(
    'ade20k_upernet:swin_tiny_acmix',
    'model.kernel_conv=5',
    'model.bins=(1, 3)',
    'model.remat=block',
    'data.eval_ratios=(0.5, 1.0)',
    'eval.flip=True',
    'loss.average=valid',
    "data.class_names=('road','car')",
  )
  model = models.create_model(**config.model)
  assert (model.backbone.kernel_conv, model.head.bins) == (5, (1, 3))
  assert model.backbone.remat == 'block'
  assert config.data.class_names == ('road', 'car')
  segmentation.Segmentation(config)
  config = from_flags('ade20k_semantic_fpn:pvt_small,release')
  assert (config.model.backbone, config.train.batch_size) == ('pvt_small', 32)


def test_unknown_arguments_are_refused():
  with pytest.raises(ValueError, match="'swin_tny' is .* mean 'swin_tiny'"):
    ade20k.upernet('swin_tny')
  with pytest.raises(ValueError, match="'digits_acmix' is unknown"):
    ade20k.semantic_fpn('digits_acmix')
  with pytest.raises(ValueError, match="'relase' is unknown.*'release'"):
    ade20k.semantic_fpn('pvt_tiny', 'relase')


@pytest.mark.parametrize(
  'config, name, batch_size, evaluations',
  [
    (ade20k.upernet('swin_tiny'), 'uper_swin_160k', 16, 10),
    (ade20k.semantic_fpn('pvt_tiny'), 'fpn_pvt_80k_batch16', 16, 10),
    (
      ade20k.semantic_fpn('pvt_tiny', 'release'),
      'fpn_pvt_40k_batch32',
      32,
      10,
    ),
  ],
  ids=['uper_swin', 'fpn_pvt', 'fpn_pvt_release'],
)
def test_learning_rates_of_the_sources(config, name, batch_size, evaluations):
  expected = RATES[name]
  assert config.train.num_steps == expected['iterations']
  assert config.train.batch_size == batch_size
  assert config.train.num_steps == evaluations * config.train.eval_every_steps
  schedule = optim.make_schedule(
    config.optim,
    num_steps=config.train.num_steps,
    steps_per_epoch=1000,
    batch_size=batch_size,
  )
  steps, rates = zip(*expected['lr'], strict=True)
  np.testing.assert_allclose(
    jax.vmap(schedule)(jnp.asarray(steps)), rates, rtol=2e-5
  )


def test_sgd_is_that_of_the_pvt_repository():
  config = ade20k.semantic_fpn('resnet50', 'release')
  schedule = optim.make_schedule(
    config.optim, num_steps=40_000, steps_per_epoch=1000, batch_size=32
  )
  assert float(schedule(0)) == pytest.approx(0.02)
  assert float(schedule(20_000)) == pytest.approx(0.02 * 0.5**0.9)
  assert (config.optim.momentum, config.optim.weight_decay) == (0.9, 5e-4)


def _parameters(config):
  model = models.create_model(**config.model)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)


def _not_decayed(config):
  params = _parameters(config)['params']
  rules = groups.parameter_rules(params, config.optim.groups)
  assert all(rule.learning_rate == 1 for rule in rules.values())
  shapes = {
    groups.parameter_path(path): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }
  return {
    path: shapes[path] for path, rule in rules.items() if not rule.weight_decay
  }


def test_swin_decays_all_but_norms_and_relative_positions():
  kept = _not_decayed(ade20k.upernet('swin_tiny'))
  assert len(kept) == 76
  assert sum(int(np.prod(shape)) for shape in kept.values()) == 49_434
  assert all(path.startswith('backbone/') for path in kept)


@pytest.mark.parametrize('backbone', ['swin_tiny_acmix', 'pvt_tiny_acmix'])
def test_acmix_decays_all_but_norms_and_relative_positions(backbone):
  config = ade20k.upernet(backbone)
  kept = _not_decayed(config)
  config.model.backbone = backbone.removesuffix('_acmix')
  baseline = _not_decayed(config)
  plain = {path.replace('operator/attention', 'operator') for path in kept}
  assert plain == set(baseline)
  assert not any(re.search('alpha|beta|kernel|position', path) for path in kept)


@pytest.mark.parametrize(
  'config',
  [ade20k.semantic_fpn('pvt_tiny'), ade20k.upernet('resnet26')],
  ids=['fpn_pvt', 'uper_resnet'],
)
def test_everything_decays_elsewhere(config):
  assert _not_decayed(config) == {}


@pytest.mark.parametrize('backbone', ['swin_tiny', 'pvt_tiny', 'resnet26'])
def test_a_classifier_gives_the_backbone_its_weights(backbone, caplog):
  caplog.set_level('INFO', 'acmix_jax')
  shallow = {'stage_sizes': (1, 1, 1, 1)}
  config = ade20k.semantic_fpn(backbone)
  config.model.update(shallow)
  variables = _parameters(config)
  flat = {
    name: np.zeros(x.shape, x.dtype)
    for name, x in names.flatten(variables).items()
  }
  classifier = models.create_model(backbone, **shallow)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  shapes = jax.eval_shape(classifier.init, jax.random.key(0), images)
  trained = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  assigned = names.flatten(
    weights.assign(
      names.unflatten(flat), trained, segmentation.Segmentation.replaceable
    )
  )
  fresh = {name for name, x in assigned.items() if not np.all(x)}
  assert {name for name in fresh if '/backbone/' in name} == {
    name for name in flat if re.search(r'stage\d_(norm|token)', name)
  }
  assert {name.split('/')[1] for name in fresh} - {'backbone'} == {
    'neck',
    'head',
  }
  assert 'in the weights alone, left out: params/head/' in caplog.text
