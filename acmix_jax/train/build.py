"""What a config and a mesh make, made once for all who compute with it.

The loop, `tools.aot`, the benchmarks and the tests take the task, the state and
the compiled functions from here. Fields that cannot work are refused when an
object is made; nothing is compiled before one of its functions is called.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from acmix_jax import tasks
from acmix_jax.train import groups, optim
from acmix_jax.train import mesh as mesh_lib
from acmix_jax.train import state as state_lib

logger = logging.getLogger(__name__)


class Evaluation:
  """A task's prediction on a mesh: what evaluation and training share.

  Attributes:
    config: Whole config, see configs/common.py.
    mesh: Devices, see `mesh.make_mesh`.
    task: Problem that `config.task` names.
    variable_shapes: Variables of the model as `jax.ShapeDtypeStruct`, with
      their shardings.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    task: tasks.Task | None = None,
  ):
    """Makes the task unless it is given.

    Raises:
      ValueError: a field that evaluation uses cannot work.
    """
    _check_shared(config)
    mesh_lib.check_batch_size(
      'eval.batch_size', config.eval.batch_size, mesh.size
    )
    self.config = config
    self.mesh = mesh
    self.task = tasks.make_task(config) if task is None else task
    self.variable_shapes = mesh_lib.with_shardings(
      jax.eval_shape(self.task.init, jax.random.key(0)), mesh
    )

  @functools.cached_property
  def predict(self):
    """Compiled `task.predict`: (params, model_state, batch) -> predictions.

    Every process gets the predictions of the whole batch. It is compiled once
    for each canvas.
    """
    return jax.jit(
      said('prediction', mesh_lib.on_mesh(self.task.predict, self.mesh)),
      out_shardings=mesh_lib.replicated(self.mesh),
    )


class Training(Evaluation):
  """A training on a mesh.

  Attributes:
    steps_per_epoch: Updates of one pass over the training data.
    num_steps: Updates of the whole training.
    schedule: Learning rate as a function of the finished updates.
    rules: Rules of the parameters by path, see `groups.parameter_rules`.
    optimizer: Optimiser of the trained parameters.
    state_shapes: `TrainState` of `jax.ShapeDtypeStruct`, with their shardings.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    task: tasks.Task | None = None,
    steps_per_epoch: int | None = None,
  ):
    """Makes everything but the compiled functions.

    Args:
      config: see configs/common.py.
      mesh: see `mesh.make_mesh`.
      task: None: the one that the config names.
      steps_per_epoch: updates of an epoch, given where there is no data; None:
        `task.steps_per_epoch`.

    Raises:
      ValueError: a field that cannot work.
    """
    _check(config.train, mesh)
    super().__init__(config, mesh, task)
    if steps_per_epoch is None:
      steps_per_epoch = self.task.steps_per_epoch
    self.steps_per_epoch = steps_per_epoch
    self.num_steps = config.train.num_steps or round(
      config.train.num_epochs * steps_per_epoch
    )
    self.schedule = optim.make_schedule(
      config.optim,
      num_steps=self.num_steps,
      steps_per_epoch=steps_per_epoch,
      batch_size=config.train.batch_size,
    )
    self.rules = groups.parameter_rules(
      self.variable_shapes['params'], config.optim.groups, self.task.frozen
    )
    self.optimizer = optim.make_optimizer(
      config.optim, self.schedule, self.rules
    )
    self.state_shapes = mesh_lib.with_shardings(
      jax.eval_shape(self._start, self.variable_shapes), mesh
    )

  def _start(self, variables):
    return state_lib.start_state(
      variables,
      self.optimizer,
      self.rules,
      ema_decay=self.config.train.ema_decay,
    )

  def random_variables(self, rng: jax.Array) -> dict[str, Any]:
    """Random variables of the model, on the mesh."""
    init = jax.jit(
      self.task.init, out_shardings=_shardings(self.variable_shapes)
    )
    return init(rng)

  def start(self, variables: dict[str, Any]) -> state_lib.TrainState:
    """State before the first update; `variables` are consumed."""
    start = jax.jit(
      self._start,
      out_shardings=_shardings(self.state_shapes),
      donate_argnums=0,
    )
    return start(variables)

  def init(self, rng: jax.Array) -> state_lib.TrainState:
    """Random state before the first update, on the mesh."""
    return self.start(self.random_variables(rng))

  @functools.cached_property
  def update(self):
    """Compiled update: (state, batch) -> (state, metrics).

    The state given to it is consumed. It is compiled once for each canvas.
    """
    train = self.config.train
    step = state_lib.make_train_step(
      self.task,
      self.optimizer,
      self.rules,
      seed=self.config.seed,
      accumulate_steps=train.accumulate_steps,
      ema_decay=train.ema_decay,
    )
    shardings = _shardings(self.state_shapes)
    return jax.jit(
      said('update', mesh_lib.on_mesh(step, self.mesh)),
      in_shardings=(shardings, mesh_lib.batch_sharding(self.mesh)),
      out_shardings=(shardings, mesh_lib.replicated(self.mesh)),
      donate_argnums=0,
    )


def _shardings(shapes: Any) -> Any:
  return jax.tree.map(lambda x: x.sharding, shapes)


def said(what: str, function: Callable) -> Callable:
  """`function(..., batch)`, which logs that it is compiled when it is traced."""

  @functools.wraps(function)
  def run(*args):
    *_, batch = args
    shapes = ', '.join(f'{name} {x.shape}' for name, x in batch.items())
    logger.info('Compiling the %s for batches of %s.', what, shapes)
    return function(*args)

  return run


def _check_shared(config: ml_collections.ConfigDict) -> None:
  """Checks fields that training and evaluation use, whatever the task."""
  if not 0 <= config.seed < 2**32:
    raise ValueError(f'seed={config.seed} must be in [0, 2**32).')
  for field in ('threads', 'workers', 'max_damaged'):
    if config.data[field] < 0:
      raise ValueError(f'data.{field}={config.data[field]} must be >= 0.')


def _check(train: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
  """Checks section `train` of a config."""
  for field, least in (
    ('accumulate_steps', 1),
    ('log_every_steps', 1),
    ('num_steps', 0),
    ('num_epochs', 0),
    ('eval_every_steps', 0),
    ('checkpoint_every_steps', 0),
  ):
    if train[field] < least:
      raise ValueError(f'train.{field}={train[field]} must be >= {least}.')
  if not train.num_steps and not train.num_epochs:
    raise ValueError('Set train.num_steps or train.num_epochs above 0.')
  if not 0 <= train.ema_decay < 1:
    raise ValueError(
      f'train.ema_decay={train.ema_decay} must be at least 0 and below 1, e.g. '
      '0.9999; 0 switches it off.'
    )
  mesh_lib.check_batch_size(
    'train.batch_size',
    train.batch_size,
    mesh.size * train.accumulate_steps,
    'the number of devices times train.accumulate_steps',
  )
