"""Learning-rate schedules and optimisers, with PyTorch's update rules."""

import logging
import math

import jax
import jax.numpy as jnp
import ml_collections
import optax

from acmix_jax import lookup
from acmix_jax.train import groups

logger = logging.getLogger(__name__)

_NAMES = {
  'name': ('sgd', 'adamw'),
  'schedule': ('cosine', 'poly', 'steps'),
  'warmup': ('before_decay', 'over_decay', 'times_decay'),
}
_NOT_NEGATIVE = (
  'learning_rate',
  'reference_batch_size',
  'warmup_steps',
  'warmup_epochs',
  'warmup_start',
  'end_learning_rate',
  'power',
  'milestone_factor',
  'epsilon',
  'weight_decay',
  'clip_norm',
)


def check(optim: ml_collections.ConfigDict) -> None:
  """Checks the fields of section `optim`, but for its groups.

  Raises:
    ValueError: an unknown name, or a number out of its range.
  """
  for field, known in _NAMES.items():
    if optim[field] not in known:
      raise ValueError(lookup.unknown(f'optim.{field}', optim[field], known))
  for field in _NOT_NEGATIVE:
    _check_range(field, optim[field])
  _check_range('momentum', optim.momentum, 1)
  for beta in optim.betas:
    _check_range('betas', beta, 1)
  if len(optim.betas) != 2:
    raise ValueError(f'optim.betas={optim.betas} must be two numbers.')
  for name in ('warmup', 'milestone'):
    steps, epochs = optim[f'{name}_steps'], optim[f'{name}_epochs']
    if steps and epochs:
      raise ValueError(
        f'optim.{name}_steps={steps} and optim.{name}_epochs={epochs} are both '
        'set; give one of them.'
      )
  milestones = (*optim.milestone_steps, *optim.milestone_epochs)
  for milestone in milestones:
    _check_range('milestone_steps or .milestone_epochs', milestone)
  if optim.schedule == 'steps' and not milestones:
    raise ValueError(
      "optim.schedule='steps' needs optim.milestone_steps or "
      'optim.milestone_epochs, e.g. (8, 11).'
    )


def _check_range(field, value, limit=math.inf):
  if not 0 <= value < limit:  # False for nan, too.
    allowed = 'finite and at least 0' if limit == math.inf else 'in [0, 1)'
    raise ValueError(f'optim.{field}={value} must be {allowed}.')


def make_schedule(
  optim: ml_collections.ConfigDict,
  *,
  num_steps: int,
  steps_per_epoch: int,
  batch_size: int,
) -> optax.Schedule:
  """Learning rate of update t + 1, as a function of the t finished updates.

  Decay. With T updates in all and the decay counted from update C,

    'cosine'   end + (lr - end) * (1 + cos(pi * (t - C) / (T - C))) / 2
    'poly'     end + (lr - end) * (1 - (t - C) / (T - C)) ** power
    'steps'    max(end, lr * milestone_factor ** n)

  where n is the number of milestones <= t, counted from the first update of the
  training: milestone 8 in epochs acts from the first update of the ninth epoch.

  Warmup. With W updates of warmup and s = `warmup_start`, the rate for t < W is

    'before_decay'   lr * (s + (1 - s) * (t + 1) / W)           C = W
    'over_decay'     lr * (s + (1 - s) * (t + 1) / W)           C = 0
    'times_decay'    decay(t) * (s + (1 - s) * t / W)           C = 0

  The first two have reached lr in the last update of the warmup; the third
  begins with s itself and reaches 1 in the first update after the warmup.

  Sources: 'before_decay' with cosine, s = 1/4 and end = 0 is
  `adjust_learning_rate_iter_warmup` of the official ResNet/main.py.
  'over_decay' with cosine is timm 0.3.2, with which PVT and Swin train: the
  rate drops a little when the warmup ends. 'times_decay' is mmcv 1.x, with
  which detectors and segmenters train: lr_config with `warmup='linear'`
  (warmup_ratio is s), policy 'poly' (by_epoch=False, min_lr is end) or 'step'.

  Differences: lr is scaled by batch_size / `reference_batch_size` where that is
  not 0 (the official ResNets never scale), but end is not. timm is an update
  behind in the warmup: its first rate is lr * s. SAN and PVT change the rate
  once an epoch, and PVT's first two epochs both have lr * s.

  Args:
    optim: section `optim` of a config.
    num_steps: T, the updates of the whole training.
    steps_per_epoch: updates an epoch, by which epochs are turned into updates.
    batch_size: examples an update, over all devices.

  Raises:
    ValueError: a field that `check` refuses.
  """
  check(optim)
  peak = optim.learning_rate
  if optim.reference_batch_size:
    peak *= batch_size / optim.reference_batch_size
  warmup = _warmup_steps(optim, num_steps, steps_per_epoch)
  origin = warmup if optim.warmup == 'before_decay' else 0
  decay = _make_decay(optim, peak, origin, num_steps, steps_per_epoch)
  return _with_warmup(optim, decay, peak, warmup)


def _warmup_steps(optim, num_steps, steps_per_epoch) -> int:
  warmup = optim.warmup_steps or round(optim.warmup_epochs * steps_per_epoch)
  if warmup >= num_steps:
    logger.warning(
      'Training ends within its warmup (%d of %d steps): the learning rate '
      'never falls. Lower optim.warmup_epochs or optim.warmup_steps.',
      num_steps,
      warmup,
    )
  return warmup


def _with_warmup(optim, decay, peak, warmup):
  """The schedule of that many updates of warmup before, or over, a decay."""
  start = optim.warmup_start

  def schedule(step):
    decayed = decay(step)
    if optim.warmup == 'times_decay':
      ramp = decayed * (start + (1 - start) * step / max(warmup, 1))
    else:
      ramp = peak * (start + (1 - start) * (step + 1) / max(warmup, 1))
    return jnp.where(step < warmup, ramp, decayed)

  return schedule


def _make_decay(optim, peak, origin, num_steps, steps_per_epoch):
  """The rate without warmup, as a function of the finished updates."""
  end, length = optim.end_learning_rate, max(num_steps - origin, 1)

  def cosine(step):
    phase = (step - origin) / length
    return end + (peak - end) * (1 + jnp.cos(math.pi * phase)) / 2

  def poly(step):
    # Whole numbers are subtracted: 1 - t / T is inexact near the end.
    left = jnp.maximum(num_steps - step, 0) / length
    return end + (peak - end) * left**optim.power

  milestones = optim.milestone_steps or [
    round(epochs * steps_per_epoch) for epochs in optim.milestone_epochs
  ]

  def steps(step):
    passed = jnp.sum(jnp.asarray(milestones) <= step)
    return jnp.maximum(end, peak * optim.milestone_factor**passed)

  return {'cosine': cosine, 'poly': poly, 'steps': steps}[optim.schedule]


def make_optimizer(
  optim: ml_collections.ConfigDict,
  schedule: optax.Schedule,
  rules: dict[str, groups.Rule],
) -> optax.GradientTransformation:
  """SGD with momentum or AdamW, as torch.optim defines them.

  Gradients are first clipped to the global norm `clip_norm` (0: not clipped).
  SGD adds the decay to the gradient before the momentum buffer (not Nesterov,
  not dampened); AdamW decays the parameters directly.

  Args:
    optim: section `optim` of a config.
    schedule: learning rate, see `make_schedule`.
    rules: rules of the parameters, see `groups.parameter_rules`. The result
      takes the trees of `groups.trained`.

  Raises:
    ValueError: a field that `check` refuses.
  """
  check(optim)
  clip = (
    optax.clip_by_global_norm(optim.clip_norm)
    if optim.clip_norm
    else optax.identity()
  )
  decay = _add_decay(optim.weight_decay, rules)
  if optim.name == 'sgd':
    rule = [decay, optax.trace(optim.momentum)]
  else:
    rule = [optax.scale_by_adam(*optim.betas, optim.epsilon), decay]
  return optax.chain(
    clip, *rule, optax.scale_by_learning_rate(schedule), _scale(rules)
  )


def _add_decay(weight_decay, rules):
  def add(path, update, param):
    factor = rules[groups.parameter_path(path)].weight_decay
    return update + weight_decay * factor * param if factor else update

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(
      add, updates, params
    )
  )


def _scale(rules):
  def scale(path, update):
    factor = rules[groups.parameter_path(path)].learning_rate
    return update if factor == 1 else factor * update

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
  )


def update_average(average, new, *, step: jax.Array, decay: float):
  """Exponential moving average of a tree of variables, in float32.

  The decay grows as min(decay, (1 + step) / (10 + step)), so that the average
  forgets the random start (the rule of TensorFlow's `num_updates`; timm's
  ModelEma keeps the decay constant).

  Args:
    average: tree of the averages so far.
    new: the same tree after update `step`.
    step: updates done before this one.
    decay: the final decay, in (0, 1).
  """
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, x: a + (1 - decay) * (x - a), average, new)
