"""Training state, its start on the mesh, and the compiled steps."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from acmix_jax import tasks, weights
from acmix_jax.train import mesh as mesh_lib
from acmix_jax.train import optim


@flax.struct.dataclass
class TrainState:
  """All that a training is, apart from the position in its data (= step).

  Attributes:
    step: int32 scalar, updates done.
    params: parameters, float32.
    model_state: other variables, e.g. batch statistics; {} without.
    opt_state: state of the optimiser.
    ema: moving averages {'params', 'model_state'}, or None.
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


def init_state(
  task: tasks.Task,
  optimizer: optax.GradientTransformation,
  rng: jax.Array,
  *,
  ema_decay: float,
) -> TrainState:
  """Random start; pure, for `jax.eval_shape` and `jax.jit`."""
  variables = dict(task.init(rng))
  params = variables.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=variables,
    opt_state=optimizer.init(params),
    ema=({'params': params, 'model_state': variables} if ema_decay else None),
  )


def start_from(
  state: TrainState, variables: dict[str, Any], replaceable: str
) -> TrainState:
  """A fresh state with other weights, its averages too; see `weights.assign`.

  Args:
    state: the result of `init_state`.
    variables: the result of `weights.load_weights`.
    replaceable: see `tasks.Task`.
  """

  def assign(params, model_state):
    new = weights.assign(
      {'params': params, **model_state}, variables, replaceable
    )
    return {'params': new.pop('params'), 'model_state': new}

  new = assign(state.params, state.model_state)
  return state.replace(**new, ema=state.ema and assign(**state.ema))


def with_shardings(shapes: Any, mesh: Mesh) -> Any:
  """Adds to a tree of `jax.ShapeDtypeStruct` where each leaf shall live."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    mesh_lib.state_shardings(shapes, mesh),
  )


def make_train_step(
  task: tasks.Task,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  accumulate_steps: int,
  ema_decay: float,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """The update as a pure function (state, batch) -> (state, metrics).

  The batch is computed in `accumulate_steps` parts, one after the other;
  gradients and metrics are their means, batch statistics pass from part to
  part. Random numbers depend on the seed and the step alone, so that a resumed
  training draws the same ones. `metrics` holds float32 scalars: those of the
  task, 'loss', and 'grad_norm' before clipping.
  """

  def gradients(params, model_state, batch, rng):
    (loss, (model_state, metrics)), grads = jax.value_and_grad(
      task.loss, has_aux=True
    )(params, model_state, batch, rng)
    return model_state, (grads, metrics | {'loss': loss})

  compute = gradients
  if accumulate_steps > 1:
    compute = functools.partial(_accumulate, gradients, accumulate_steps)

  def train_step(state, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    model_state, (grads, metrics) = compute(
      state.params, state.model_state, batch, rng
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
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


def jit_train_step(step: Callable, state: TrainState, mesh: Mesh) -> Callable:
  """Compiles an update of such states; the state given to it is consumed."""
  shardings = mesh_lib.state_shardings(state, mesh)
  return jax.jit(
    mesh_lib.on_mesh(step, mesh),
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
    donate_argnums=0,
  )


def jit_predict(task: tasks.Task, mesh: Mesh) -> Callable:
  """Compiles `task.predict`; every process gets the whole batch's result."""
  return jax.jit(
    mesh_lib.on_mesh(task.predict, mesh),
    out_shardings=mesh_lib.replicated(mesh),
  )
