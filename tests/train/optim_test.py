"""Schedules, update rules and averages against plain formulas."""

import json
import math
import pathlib

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from acmix_jax.train import groups, optim
from configs import common, imagenet

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


def _optim(**changes):
  config = imagenet.resnet('resnet50', stage_sizes=(3, 4, 6, 3)).optim
  config.update(changes)
  return config.lock()


def _official(step, lr, epochs, per_epoch):
  """The official main.py's rate, written out."""
  epoch, iteration = divmod(step, per_epoch)
  if epoch < 5:
    return lr / 4 + 3 * lr / 4 * (1 + step) / (5 * per_epoch)
  done = (epoch - 5) * per_epoch + iteration
  return 0.5 * lr * (1 + math.cos(math.pi * done / ((epochs - 5) * per_epoch)))


def test_schedule_is_the_official_one():
  schedule = optim.make_schedule(
    _optim(), num_steps=100 * 7, steps_per_epoch=7, batch_size=256
  )
  steps = range(700)
  ours = [schedule(step) for step in steps]
  expected = [_official(step, 0.1, 100, 7) for step in steps]
  np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-8)


def test_rate_scales_with_the_batch_and_ends_at_its_end():
  make = lambda **changes: optim.make_schedule(  # noqa: E731
    _optim(warmup_epochs=0.0, **changes),
    num_steps=10,
    steps_per_epoch=5,
    batch_size=1024,
  )
  assert make()(0) == pytest.approx(0.4)
  assert make(reference_batch_size=0)(0) == pytest.approx(0.1)
  assert make(end_learning_rate=0.01)(10) == pytest.approx(0.01)


def _schedule(num_steps, per_epoch=1, **changes):
  schedule = optim.make_schedule(
    _optim(reference_batch_size=0, **changes),
    num_steps=num_steps,
    steps_per_epoch=per_epoch,
    batch_size=16,
  )
  return jax.jit(schedule)


# What mmcv's hook gave in the iterations of three recipes.
@pytest.mark.parametrize(
  'recorded',
  json.loads((FIXTURES / 'learning_rates.json').read_text()).values(),
  ids=['uper_swin_160k', 'fpn_pvt_80k', 'fpn_pvt_40k'],
)
def test_poly_with_warmup_has_the_recorded_rates_of_mmcv(recorded):
  schedule = _schedule(
    recorded['iterations'],
    schedule='poly',
    learning_rate=recorded['base'],
    power=recorded['power'],
    end_learning_rate=recorded['min_lr'],
    warmup='times_decay',
    warmup_epochs=0.0,
    warmup_steps=recorded.get('warmup_iters', 0),
    warmup_start=recorded.get('warmup_ratio', 1.0),
  )
  for step, expected in recorded['lr']:
    assert schedule(step) == pytest.approx(expected, rel=2e-6), step


def test_steps_with_warmup_have_the_rates_of_mmcv():
  """12 epochs, a tenth from the ninth and the twelfth on, 500 updates up."""
  schedule = _schedule(
    12 * 1000,
    per_epoch=1000,
    schedule='steps',
    learning_rate=0.02,
    milestone_epochs=(8, 11),
    warmup='times_decay',
    warmup_epochs=0.0,
    warmup_steps=500,
    warmup_start=0.001,
  )
  for step, factor in [
    (0, 0.001),
    (499, 0.998002),
    (500, 1.0),
    (7999, 1.0),
    (8000, 0.1),
    (10999, 0.1),
    (11000, 0.01),
  ]:
    assert schedule(step) == pytest.approx(0.02 * factor, rel=1e-5), step


def test_milestones_in_updates_and_the_least_rate():
  schedule = _schedule(
    10,
    schedule='steps',
    milestone_steps=(3, 5),
    milestone_factor=0.5,
    end_learning_rate=0.04,
    warmup_epochs=0.0,
  )
  rates = [float(schedule(step)) for step in (2, 3, 4, 5)]
  assert rates == pytest.approx([0.1, 0.05, 0.05, 0.04])


@pytest.mark.parametrize('warmup', ['before_decay', 'over_decay'])
def test_poly_reaches_the_full_rate_in_the_last_update_of_the_warmup(warmup):
  schedule = _schedule(
    20,
    schedule='poly',
    learning_rate=1.0,
    power=2.0,
    warmup=warmup,
    warmup_epochs=4.0,
    warmup_start=0.2,
  )
  rates = [float(schedule(step)) for step in (0, 1, 3, 4, 12, 20)]
  after = [1.0, 0.25] if warmup == 'before_decay' else [0.64, 0.16]
  assert rates == pytest.approx([0.4, 0.6, 1.0, *after, 0.0])


def _trees(seed, count):
  rng = np.random.default_rng(seed)
  return [
    {
      'conv': {'kernel': rng.normal(size=(3, 2)).astype(np.float32)},
      'norm': {'bias': rng.normal(size=2).astype(np.float32)},
    }
    for _ in range(count)
  ]


def _groups(**named):
  return ml_collections.ConfigDict(named)


def _run(config, params, grads, rate):
  rules = groups.parameter_rules(params, config.groups)
  optimizer = optim.make_optimizer(
    config, lambda step: rate / (1 + step), rules
  )
  state = optimizer.init(params)
  for grad in grads:
    updates, state = optimizer.update(grad, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_sgd_is_that_of_torch():
  params, *grads = _trees(0, 4)
  config = _optim(weight_decay=0.1)
  config.groups.no_decay.pattern = 'bias$'
  ours = _run(config, params, grads, 0.5)
  for layer, name, decay in [('conv', 'kernel', 0.1), ('norm', 'bias', 0)]:
    p, momentum = params[layer][name], 0
    for i, grad in enumerate(grads):
      momentum = 0.9 * momentum + grad[layer][name] + decay * p
      p = p - 0.5 / (1 + i) * momentum
    np.testing.assert_allclose(ours[layer][name], p, rtol=1e-5)


def test_adamw_is_that_of_torch():
  params, *grads = _trees(1, 4)
  ours = _run(_optim(name='adamw', weight_decay=0.1), params, grads, 0.5)
  for layer, name in [('conv', 'kernel'), ('norm', 'bias')]:
    p, m, v = params[layer][name], 0, 0
    for i, grad in enumerate(grads):
      g, rate = grad[layer][name], 0.5 / (1 + i)
      p = p * (1 - rate * 0.1)
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      denominator = np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8
      p = p - rate * m / (1 - 0.9 ** (i + 1)) / denominator
    np.testing.assert_allclose(ours[layer][name], p, rtol=1e-4)


def test_clipping_holds_the_norm_before_decay():
  params, grad = _trees(2, 2)
  norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grad)))
  config = _optim(clip_norm=0.5, weight_decay=0.1)
  ours = _run(config, params, [grad], 1.0)
  expected = jax.tree.map(
    lambda p, g: p - (g * 0.5 / norm + 0.1 * p), params, grad
  )
  chex.assert_trees_all_close(ours, expected, rtol=1e-5)


def test_factors_of_a_group_scale_its_rate_and_its_decay():
  params, *grads = _trees(4, 3)
  with_group = _optim(weight_decay=0.1)
  with with_group.unlocked():
    with_group.groups = _groups(
      norms=common.group('norm/', learning_rate=0.5, weight_decay=3.0)
    )
  ours = _run(with_group, params, grads, 0.5)
  plain = _run(_optim(weight_decay=0.1), params, grads, 0.5)
  scaled = _run(_optim(weight_decay=0.3), params, grads, 0.25)
  chex.assert_trees_all_close(ours['conv'], plain['conv'], rtol=1e-6)
  chex.assert_trees_all_close(ours['norm'], scaled['norm'], rtol=1e-6)


def test_factors_of_several_groups_multiply():
  (params,) = _trees(3, 1)
  rules = groups.parameter_rules(
    params,
    _groups(
      a=common.group('bias|kernel', learning_rate=0.5, weight_decay=0.0),
      b=common.group('^norm', learning_rate=0.2, frozen=True),
      unused=common.group(frozen=True),
    ),
    frozen='norm/bias',
  )
  assert rules == {
    'conv/kernel': groups.Rule(0.5, 0.0, False),
    'norm/bias': groups.Rule(0.1, 0.0, True),
  }
  trained = groups.trained(params, rules)
  assert trained == {'conv': params['conv'], 'norm': {'bias': None}}
  chex.assert_trees_all_equal(groups.with_frozen(trained, params), params)


@pytest.mark.parametrize(
  'group, message',
  [
    (
      common.group('cls_token'),
      "groups.x.pattern='cls_token' matches no parameter; .*'conv/kernel'",
    ),
    (common.group('(bias'), 'groups.x.pattern=.* is no regular expression'),
    (common.group('bias', learning_rate=-1.0), 'groups.x.learning_rate=-1.0'),
    (
      common.group('bias', weight_decay=float('nan')),
      'groups.x.weight_decay=nan',
    ),
    (common.group('.', frozen=True), 'nothing to train'),
  ],
)
def test_a_group_that_cannot_work_is_refused(group, message):
  (params,) = _trees(3, 1)
  with pytest.raises(ValueError, match=message):
    groups.parameter_rules(params, _groups(x=group))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'learning_rate': -0.1}, 'learning_rate=-0.1 must be finite and at least'),
    ({'learning_rate': float('inf')}, 'learning_rate=inf'),
    ({'learning_rate': float('nan')}, 'learning_rate=nan'),
    ({'clip_norm': -1.0}, 'clip_norm=-1.0'),
    ({'momentum': 1.0}, r'momentum=1.0 must be in \[0, 1\)'),
    ({'betas': (0.9, 1.0)}, 'betas=1.0'),
    ({'weight_decay': -1e-4}, 'weight_decay=-0.0001'),
    ({'warmup_epochs': -1.0}, 'warmup_epochs=-1.0'),
    (
      {'warmup_steps': 5},
      'warmup_steps=5 and optim.warmup_epochs=5.0 are both',
    ),
    ({'schedule': 'step'}, "'step' is unknown. Did you mean 'steps'"),
    ({'schedule': 'steps'}, 'needs optim.milestone_steps or'),
    ({'warmup': 'linear'}, "optim.warmup 'linear' is unknown"),
    (
      {'milestone_steps': (3,), 'milestone_epochs': (1.0,)},
      'milestone_steps=.* are both set',
    ),
  ],
)
def test_a_field_that_cannot_work_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    optim.check(_optim(**change))


def test_average_starts_fast_and_slows_to_its_decay():
  average, expected = {'x': jnp.zeros(())}, 0.0
  for step in range(30):
    average = optim.update_average(
      average, {'x': jnp.asarray(step + 1.0)}, step=step, decay=0.7
    )
    decay = min(0.7, (1 + step) / (10 + step))
    expected = decay * expected + (1 - decay) * (step + 1)
  assert average['x'] == pytest.approx(expected, rel=1e-5)
