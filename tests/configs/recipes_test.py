"""The recipes against the formulas and rules of their sources."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax import models
from acmix_jax.train import groups, optim
from configs import imagenet

PER_EPOCH = 10


def rates(config, steps):
  """Learning rates of the updates in `steps`, at 10 updates an epoch."""
  schedule = optim.make_schedule(
    config.optim,
    num_steps=config.train.num_epochs * PER_EPOCH,
    steps_per_epoch=PER_EPOCH,
    batch_size=config.train.batch_size,
  )
  return np.array(jax.vmap(schedule)(jnp.asarray(steps)))


def timm_rate(step, total, warmup):
  """The CosineLRScheduler of timm 0.3.2 as PVT and Swin set it."""
  if step < warmup:
    return 1e-6 + step * (1e-3 - 1e-6) / warmup
  return 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / total))


@pytest.mark.parametrize(
  'config, warmup_epochs',
  [
    (imagenet.pvt('pvt_tiny', stage_sizes=(2, 2, 2, 2)), 5),
    (imagenet.swin('swin_tiny', stage_sizes=(2, 2, 6, 2), drop_path=0.2), 20),
  ],
  ids=['pvt', 'swin'],
)
def test_transformers_have_the_rates_of_timm(config, warmup_epochs):
  total, warmup = 300 * PER_EPOCH, warmup_epochs * PER_EPOCH
  assert config.train.num_epochs == 300
  expected = [timm_rate(step, total, warmup) for step in range(total + 1)]
  # The warmup is one update ahead of timm's; the cosine is not.
  ours = rates(config, range(total + 1))
  np.testing.assert_allclose(ours[: warmup - 1], expected[1:warmup], rtol=1e-5)
  np.testing.assert_allclose(
    ours[warmup:], expected[warmup:], rtol=1e-4, atol=1e-9
  )
  assert ours[warmup - 1] == pytest.approx(1e-3)
  assert ours[warmup] < ours[warmup - 1]
  assert ours[-1] == pytest.approx(1e-5, rel=1e-4)


def test_san_follows_a_cosine_to_zero_without_warmup():
  config = imagenet.san('san10', stem_size=2, stage_sizes=(1, 2, 4, 1))
  assert config.train.num_epochs == 100
  epochs = np.arange(101)
  # torch's CosineAnnealingLR with T_max = 100.
  expected = 0.1 * (1 + np.cos(np.pi * epochs / 100)) / 2
  np.testing.assert_allclose(
    rates(config, epochs * PER_EPOCH), expected, rtol=1e-4, atol=1e-8
  )


def parameters(name):
  """Shapes of a shallow model's parameters by path."""
  model = models.create_model(name, stage_sizes=(1, 1, 1, 1))
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return params, {groups.parameter_path(p): x.shape for p, x in leaves}


def not_decayed(name, params):
  config = importlib.import_module(f'configs.{name}').get_config()
  rules = groups.parameter_rules(params, config.optim.groups)
  assert all(rule.weight_decay in (0, 1) for rule in rules.values())
  return {path for path, rule in rules.items() if not rule.weight_decay}


@pytest.mark.parametrize('name', ['resnet26_acmix', 'san10_acmix'])
def test_everything_decays_in_resnet_and_san(name):
  params, _ = parameters(name)
  assert not_decayed(name, params) == set()


@pytest.mark.parametrize('name', ['pvt_tiny', 'pvt_tiny_acmix'])
def test_pvt_decays_kernels_and_position_embeddings(name):
  params, shapes = parameters(name)
  # The position of the class token is part of the last stage's embeddings,
  # which have three axes in the source.
  expected = {path for path, shape in shapes.items() if len(shape) <= 1}
  expected.remove('head/token_position')
  assert 'head/token' in expected
  assert 'backbone/stage1_position' not in expected
  assert not_decayed(name, params) == expected


@pytest.mark.parametrize('name', ['swin_tiny', 'swin_tiny_acmix'])
def test_swin_decays_all_but_vectors_and_relative_positions(name):
  params, shapes = parameters(name)
  vectors = {path for path, shape in shapes.items() if len(shape) <= 1}
  tables = {path for path, shape in shapes.items() if shape[:1] == (169,)}
  assert len(tables) == 4
  assert not_decayed(name, params) == vectors | tables


def test_acmix_trains_as_its_baseline():
  for name in models.list_models('*_acmix'):
    ours, baseline = (
      importlib.import_module(f'configs.{name}').get_config()
      for name in (name, name.removesuffix('_acmix'))
    )
    ours.model.name = baseline.model.name
    assert ours.to_dict() == baseline.to_dict()


def test_recipes_have_the_augmentation_of_their_sources():
  resnet = imagenet.resnet('resnet50', stage_sizes=(3, 4, 6, 3))
  san = imagenet.san('san10', stem_size=2, stage_sizes=(1, 2, 4, 1))
  pvt = imagenet.pvt('pvt_tiny', stage_sizes=(2, 2, 2, 2))
  tiny = importlib.import_module('configs.swin_tiny').get_config()
  small = importlib.import_module('configs.swin_small').get_config()
  for config in (resnet, san):
    assert config.data.interpolation == 'bilinear'
    assert config.data.randaugment_operations == 0
    assert config.augment.mixup_alpha == config.augment.cutmix_alpha == 0
    assert config.augment.erasing_probability == 0
  for config in (pvt, tiny, small):
    assert config.data.interpolation == 'bicubic'
    assert config.data.randaugment_operations == 2
    augment = config.augment
    assert (augment.mixup_alpha, augment.cutmix_alpha) == (0.8, 1.0)
    assert augment.erasing_probability == 0.25
    assert config.train.batch_size == 8 * augment.mixup_group_size
  assert [c.data.repeats for c in (resnet, san, pvt, tiny)] == [1, 1, 3, 1]
  assert [c.optim.clip_norm for c in (san, pvt, tiny)] == [0, 0, 5]
  assert [c.model.drop_path for c in (pvt, tiny, small)] == [0.1, 0.2, 0.3]
