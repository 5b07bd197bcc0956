"""The state of a training and its update, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from acmix_jax import tasks
from acmix_jax.train import groups, optim


@flax.struct.dataclass
class TrainState:
  """Everything that a checkpoint must hold to resume a training.

  The position in the data is `step`.

  Attributes:
    step: Number of finished updates, an int32 scalar.
    params: Parameters, float32.
    model_state: Other variables, e.g. batch statistics; {} without any.
    opt_state: State of the optimiser; it has nothing for frozen parameters.
    ema: Moving averages {'params', 'model_state'}, or None.
  """

  step: jax.Array
  params: Any
  model_state: Any
  opt_state: Any
  ema: Any

  def evaluated(self) -> tuple[Any, Any]:
    """(params, model_state) to evaluate: the averages where there are any."""
    if self.ema is None:
      return self.params, self.model_state
    return self.ema['params'], self.ema['model_state']


def start_state(
  variables: dict[str, Any],
  optimizer: optax.GradientTransformation,
  rules: dict[str, groups.Rule],
  *,
  ema_decay: float,
) -> TrainState:
  """State of a training that begins with these variables; pure."""
  model_state = dict(variables)
  params = model_state.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=optimizer.init(groups.trained(params, rules)),
    ema=({'params': params, 'model_state': model_state} if ema_decay else None),
  )


def make_train_step(
  task: tasks.Task,
  optimizer: optax.GradientTransformation,
  rules: dict[str, groups.Rule],
  *,
  seed: int,
  accumulate_steps: int,
  ema_decay: float,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """The update as a pure function (state, batch) -> (state, metrics).

  The batch is computed in `accumulate_steps` parts, one after the other;
  gradients and metrics are their means, batch statistics pass from part to
  part. Random numbers depend on the seed and the step alone, so that a resumed
  training draws the same ones. Frozen parameters have no gradient. `metrics`
  holds float32 scalars: those of the task, 'loss', and 'grad_norm' before
  clipping.

  Args:
    task: gives the loss.
    optimizer: result of `optim.make_optimizer`.
    rules: rules of the parameters, see `groups.parameter_rules`.
    seed: start of all random numbers.
    accumulate_steps: parts of a batch, a divisor of its size.
    ema_decay: decay of the moving averages, if the state has any.
  """
  compute = functools.partial(_gradients, task, rules)
  if accumulate_steps > 1:
    compute = functools.partial(_accumulate, compute, accumulate_steps)

  def train_step(state, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    model_state, (grads, metrics) = compute(
      state.params, state.model_state, batch, rng
    )
    trained = groups.trained(state.params, rules)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = groups.with_frozen(
      optax.apply_updates(trained, updates), state.params
    )
    ema = state.ema
    if ema is not None:
      ema = optim.update_average(
        ema,
        {'params': params, 'model_state': model_state},
        step=state.step,
        decay=ema_decay,
      )
    metrics['grad_norm'] = optax.tree.norm(grads)
    state = TrainState(state.step + 1, params, model_state, opt_state, ema)
    return state, metrics

  return train_step


def _gradients(task, rules, params, model_state, batch, rng):
  """(model_state, (gradients, metrics)) of a batch."""

  def loss_of(trained):
    return task.loss(
      groups.with_frozen(trained, params), model_state, batch, rng
    )

  (loss, (model_state, metrics)), grads = jax.value_and_grad(
    loss_of, has_aux=True
  )(groups.trained(params, rules))
  return model_state, (grads, metrics | {'loss': loss})


def _accumulate(gradients, count, params, model_state, batch, rng):
  """The results of `gradients` for `count` parts of a batch, averaged."""
  # Part i takes the rows i, i + n, ...: every device keeps its own rows.
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch
  )

  def add_part(carry, indexed_part):
    model_state, sums = carry
    index, part = indexed_part
    model_state, results = gradients(
      params, model_state, part, jax.random.fold_in(rng, index)
    )
    return (model_state, jax.tree.map(jnp.add, sums, results)), None

  _, shapes = jax.eval_shape(
    gradients, params, model_state, jax.tree.map(lambda x: x[0], parts), rng
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (model_state, sums), _ = jax.lax.scan(
    add_part, (model_state, zeros), (jnp.arange(count), parts)
  )
  return model_state, jax.tree.map(lambda x: x / count, sums)
