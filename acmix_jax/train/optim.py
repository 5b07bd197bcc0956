"""Learning-rate schedules and optimisers, with PyTorch's update rules."""

import logging
import math
import re

import jax
import jax.numpy as jnp
import ml_collections
import optax

logger = logging.getLogger(__name__)


def parameter_path(path: tuple) -> str:
  """Key path of a leaf as a string, e.g. 'stage1_block0/conv1/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def make_schedule(
  optim: ml_collections.ConfigDict,
  *,
  num_steps: int,
  steps_per_epoch: int,
  batch_size: int,
) -> optax.Schedule:
  """Learning rate of the update that follows `step` finished updates.

  With W steps of warmup (`warmup_epochs`), s = `warmup_start` and T steps in
  all, the rate is

    lr * (s + (1 - s) * (step + 1) / W)                  for step < W,
    end + (lr - end) * (1 + cos(pi * (step - C) / (T - C))) / 2   afterwards,

  where the cosine begins at C = W, or at C = 0 with `cosine_from_start`.

  C = W, s = 1/4 and end = 0 is `adjust_learning_rate_iter_warmup` of the
  official ResNet/main.py. C = 0 is timm 0.3.2, with which PVT and Swin train:
  the rate drops a little when the warmup ends. Differences: lr is scaled by
  batch_size / `reference_batch_size` where that is not 0 (the official ResNets
  never scale), and s with it, but not end; timm is an update behind, first the
  ramp is s; SAN and PVT change the rate once an epoch, and PVT's first two
  epochs both have s.

  Args:
    optim: section `optim` of a config.
    num_steps: T, the updates of the whole training.
    steps_per_epoch: updates an epoch.
    batch_size: examples an update, over all devices.

  Raises:
    ValueError: unknown schedule, a negative warmup or reference batch.
  """
  _check_schedule(optim)
  peak = optim.learning_rate
  if optim.reference_batch_size:
    peak *= batch_size / optim.reference_batch_size
  warmup = round(optim.warmup_epochs * steps_per_epoch)
  if warmup >= num_steps:
    logger.warning(
      'Training ends within its warmup (%d of %d steps): the learning rate '
      'never falls. Lower optim.warmup_epochs.',
      num_steps,
      warmup,
    )
  start, end = optim.warmup_start, optim.end_learning_rate
  origin = 0 if optim.cosine_from_start else warmup

  def schedule(step):
    ramp = peak * (start + (1 - start) * (step + 1) / max(warmup, 1))
    phase = (step - origin) / max(num_steps - origin, 1)
    cosine = end + (peak - end) * (1 + jnp.cos(math.pi * phase)) / 2
    return jnp.where(step < warmup, ramp, cosine)

  return schedule


def _check_schedule(optim):
  if optim.schedule != 'cosine':
    raise ValueError(
      f"optim.schedule={optim.schedule!r} is unknown; known: 'cosine'."
    )
  if optim.warmup_epochs < 0 or optim.reference_batch_size < 0:
    raise ValueError(
      f'optim.warmup_epochs={optim.warmup_epochs} and '
      f'optim.reference_batch_size={optim.reference_batch_size} must not be '
      'negative; 0 switches either off.'
    )


def decay_mask(params, no_decay: tuple[str, ...]):
  """Tree of bools: True where weight decay applies.

  Args:
    params: parameter tree.
    no_decay: regular expressions; a parameter whose path ('/'-joined, see
      `parameter_path`) one of them matches anywhere is not decayed.

  Raises:
    ValueError: an expression matches no parameter.
  """
  paths = [
    parameter_path(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  for pattern in no_decay:
    if not any(re.search(pattern, path) for path in paths):
      raise ValueError(
        f'optim.no_decay: {pattern!r} matches no parameter; paths read like '
        f'{paths[0]!r}.'
      )
  return jax.tree_util.tree_map_with_path(
    lambda path, _: (
      not any(re.search(p, parameter_path(path)) for p in no_decay)
    ),
    params,
  )


def make_optimizer(
  optim: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """SGD with momentum or AdamW, as torch.optim defines them.

  Gradients are first clipped to the global norm `clip_norm` (0: not clipped).
  SGD adds the decay to the gradient before the momentum buffer (not Nesterov,
  not dampened); AdamW decays the parameters directly.

  Raises:
    ValueError: unknown name.
  """
  clip = (
    optax.clip_by_global_norm(optim.clip_norm)
    if optim.clip_norm
    else optax.identity()
  )
  decay = optax.add_decayed_weights(
    optim.weight_decay,
    mask=lambda params: decay_mask(params, optim.no_decay),
  )
  if optim.name == 'sgd':
    rule = [decay, optax.trace(optim.momentum)]
  elif optim.name == 'adamw':
    b1, b2 = optim.betas
    rule = [optax.scale_by_adam(b1, b2, optim.epsilon), decay]
  else:
    raise ValueError(
      f"optim.name={optim.name!r} is unknown; known: 'sgd', 'adamw'."
    )
  return optax.chain(clip, *rule, optax.scale_by_learning_rate(schedule))


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
