"""Schedules, update rules and averages against plain formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from acmix_jax.train import optim
from configs import imagenet


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


def _trees(seed, count):
  rng = np.random.default_rng(seed)
  return [
    {
      'conv': {'kernel': rng.normal(size=(3, 2)).astype(np.float32)},
      'norm': {'bias': rng.normal(size=2).astype(np.float32)},
    }
    for _ in range(count)
  ]


def _run(config, params, grads, rate):
  optimizer = optim.make_optimizer(config, lambda step: rate / (1 + step))
  state = optimizer.init(params)
  for grad in grads:
    updates, state = optimizer.update(grad, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_sgd_is_that_of_torch():
  params, *grads = _trees(0, 4)
  ours = _run(_optim(weight_decay=0.1, no_decay=('bias$',)), params, grads, 0.5)
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
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected
  )


def test_decay_mask_matches_paths_and_refuses_a_useless_expression():
  (params,) = _trees(3, 1)
  mask = optim.decay_mask(params, ('norm/', 'kernel$'))
  assert mask == {'conv': {'kernel': False}, 'norm': {'bias': False}}
  with pytest.raises(ValueError, match="'cls_token' matches no parameter"):
    optim.decay_mask(params, ('cls_token',))


def test_average_starts_fast_and_slows_to_its_decay():
  average, expected = {'x': jnp.zeros(())}, 0.0
  for step in range(30):
    average = optim.update_average(
      average, {'x': jnp.asarray(step + 1.0)}, step=step, decay=0.7
    )
    decay = min(0.7, (1 + step) / (10 + step))
    expected = decay * expected + (1 - decay) * (step + 1)
  assert average['x'] == pytest.approx(expected, rel=1e-5)
