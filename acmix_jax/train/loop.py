"""Training and evaluation of any task: the only place with the order of steps.

Step n is the n-th update. After it, where due, come in this order: the log
line, the evaluation, the checkpoint. A resumed training goes on with step n + 1
and does what a training that was never stopped would do.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from clu import parameter_overview

from acmix_jax import tasks, weights
from acmix_jax.train import checkpoint as checkpoint_lib
from acmix_jax.train import mesh as mesh_lib
from acmix_jax.train import metrics_window as window_lib
from acmix_jax.train import optim, preemption, writer
from acmix_jax.train import state as state_lib
from acmix_jax.weights import files

logger = logging.getLogger(__name__)


def run(
  config: ml_collections.ConfigDict,
  workdir: str,
  mode: str = 'train',
  checkpoint: str = '',
) -> dict[str, float]:
  """Trains or evaluates what a config describes.

  Args:
    config: see configs/common.py.
    workdir: folder of the training on a file system that all processes see.
      'train' resumes from its latest checkpoint, or starts from
      `config.init_from`, or from random weights.
    mode: 'train', or 'eval': evaluates a checkpoint and prints its metrics.
    checkpoint: for 'eval': a step of the workdir, or a path as of `init_from`;
      '' stands for the best of the workdir, or `init_from` without any.

  Returns:
    Metrics of the last evaluation that was made.

  Raises:
    ValueError: a field that cannot work, before anything is compiled.
    NonFiniteError: the loss left the finite numbers.
  """
  if mode not in ('train', 'eval'):
    raise ValueError(f"mode={mode!r} is unknown; known: 'train', 'eval'.")
  if '://' in workdir:
    raise ValueError(
      f'workdir={workdir!r}: give a path of a file system; mount buckets '
      '(gcsfuse, Filestore) under one.'
    )
  directory = pathlib.Path(workdir).expanduser().absolute()
  mesh = mesh_lib.make_mesh(config.mesh)
  _check(config, mesh)
  task = tasks.make_task(config)
  if mode == 'eval':
    return _evaluate_checkpoint(config, task, mesh, directory, checkpoint)
  return _train(config, task, mesh, directory)


def _check(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
  train = config.train
  positive = ('accumulate_steps', 'log_every_steps')
  not_negative = (
    *('num_steps', 'num_epochs', 'eval_every_steps'),
    *('checkpoint_every_steps', 'ema_decay'),
  )
  for name in positive + not_negative:
    least = int(name in positive)
    if train[name] < least:
      raise ValueError(f'train.{name}={train[name]} must be >= {least}.')
  if not train.num_steps and not train.num_epochs:
    raise ValueError('Set train.num_steps or train.num_epochs above 0.')
  if train.ema_decay >= 1:
    raise ValueError(
      f'train.ema_decay={train.ema_decay} must be below 1, e.g. 0.9999; 0 '
      'switches it off.'
    )
  mesh_lib.check_batch_size(
    'train.batch_size', train.batch_size, mesh.size * train.accumulate_steps
  )
  mesh_lib.check_batch_size(
    'eval.batch_size', config.eval.batch_size, mesh.size
  )


def _train(config, task, mesh, workdir):
  """Trains to the end, or to SIGTERM; see `run`."""
  plan = _Plan.of(config.train, task.steps_per_epoch)
  schedule = optim.make_schedule(
    config.optim,
    num_steps=plan.num_steps,
    steps_per_epoch=task.steps_per_epoch,
    batch_size=config.train.batch_size,
  )
  optimizer = optim.make_optimizer(config.optim, schedule)
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(preemption.Preemption())
    checkpoints = checkpoint_lib.Checkpoints(
      workdir, best_metric=task.best_metric, **config.checkpoint
    )
    stack.callback(checkpoints.close)
    state, window = _start(config, task, mesh, optimizer, checkpoints)
    start_step = int(state.step)
    log = writer.TrainingLog(workdir, config, start_step, plan.num_steps)
    stack.callback(log.close)
    if start_step >= plan.num_steps:
      logger.info('Nothing to do: step %d of %d.', start_step, plan.num_steps)
      return {}
    batches = task.train_data(
      start_step, jax.process_index(), jax.process_count()
    )
    stack.callback(batches.close)
    train_step = state_lib.jit_train_step(
      state_lib.make_train_step(
        task,
        optimizer,
        seed=config.seed,
        accumulate_steps=config.train.accumulate_steps,
        ema_decay=config.train.ema_decay,
      ),
      state,
      mesh,
    )
    between = _Between(task, mesh, schedule, checkpoints, log, window)
    for step in range(start_step + 1, plan.num_steps + 1):
      batch = mesh_lib.to_devices(next(batches), mesh)
      state, metrics = train_step(state, batch)
      window.add(metrics)
      if step == start_step + 1:
        # Compilation is over: only what follows tells the speed.
        jax.block_until_ready(metrics)
        log.start_clock(step)
      stopping = stop.reached(step)
      due = plan.due(step)
      if due or stopping:
        between.act(step, due, state, batches.damaged, stopping)
      if stopping:
        logger.info('SIGTERM: saved step %d; run again to resume.', step)
        break
    return between.evaluated


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is due after which step; after the last one, all."""

  num_steps: int
  every: dict[str, int]

  @classmethod
  def of(cls, train: ml_collections.ConfigDict, epoch: int) -> '_Plan':
    """Plan of a config, where 0 stands for an epoch of so many steps."""
    return cls(
      train.num_steps or round(train.num_epochs * epoch),
      {
        'log': train.log_every_steps,
        'eval': train.eval_every_steps or epoch,
        'checkpoint': train.checkpoint_every_steps or epoch,
      },
    )

  def due(self, step: int) -> set[str]:
    """Those of 'log', 'eval' and 'checkpoint' that follow a step."""
    last = step == self.num_steps
    return {name for name, n in self.every.items() if last or step % n == 0}


class _Between:
  """What happens between updates; keeps the last evaluation in `evaluated`."""

  def __init__(self, task, mesh, schedule, checkpoints, log, window):
    self._task = task
    self._mesh = mesh
    self._predict = state_lib.jit_predict(task, mesh)
    self._schedule = schedule
    self._checkpoints = checkpoints
    self._log = log
    self._window = window
    self.evaluated = {}

  def act(self, step, due, state, damaged, stopping):
    """Logs, evaluates and saves what is due, in this order."""
    self._check_finite()
    self._log.pause_clock(step)
    if 'log' in due:
      self._log.train(
        step,
        self._window.flush(),
        learning_rate=float(self._schedule(step - 1)),
        params=state.params,
        damaged=damaged,
      )
    metrics = {}
    if 'eval' in due:
      metrics = self.evaluated = evaluate(
        self._task, self._predict, state.evaluated(), self._mesh
      )
      self._log.eval(step, metrics)
    # An evaluated state is always saved, so that the best one is there.
    if stopping or due & {'eval', 'checkpoint'}:
      self._checkpoints.save(
        state, step=step, window=self._window.read(), metrics=metrics
      )
    self._log.start_clock(step)

  def _check_finite(self):
    try:
      self._window.read()
    except window_lib.NonFiniteError as error:
      step = self._checkpoints.latest_step()
      left = (
        'no checkpoint is left' if step is None else f'step {step} is saved'
      )
      raise window_lib.NonFiniteError(f'{error}; {left}.') from error


def _start(config, task, mesh, optimizer, checkpoints):
  """(state, window): resumed, or from `init_from`, or random."""
  init = functools.partial(
    state_lib.init_state,
    task,
    optimizer,
    ema_decay=config.train.ema_decay,
  )
  rng = jax.random.key(config.seed)
  shapes = state_lib.with_shardings(jax.eval_shape(init, rng), mesh)
  if jax.process_index() == 0:
    logger.info(
      'Parameters:\n%s',
      parameter_overview.get_parameter_overview(
        shapes.params, include_stats=False
      ),
    )
  step = checkpoints.latest_step()
  if step is not None:
    logger.info('Resuming after step %d.', step)
    state, values = checkpoints.restore(step, shapes)
    return state, window_lib.Window(step, values)
  state = jax.jit(
    init, out_shardings=jax.tree.map(lambda x: x.sharding, shapes)
  )(rng)
  if config.init_from:
    path = weights.find(config.init_from)
    logger.info('Starting from %s.', path)
    state = state_lib.start_from(
      state, weights.load_weights(path), task.replaceable
    )
  return state, window_lib.Window(0)


def evaluate(
  task: tasks.Task,
  predict: Callable,
  variables: tuple[Any, Any],
  mesh: jax.sharding.Mesh,
) -> dict[str, float]:
  """Metrics over the evaluation split.

  Args:
    task: gives the data and the evaluator.
    predict: result of `state.jit_predict`.
    variables: (params, model_state).
    mesh: devices of the variables.
  """
  evaluator = task.evaluator()
  batches = task.eval_data(jax.process_index(), jax.process_count())
  with contextlib.closing(batches):
    # One batch behind: the devices work while the host counts.
    previous = None
    for batch in batches:
      current = predict(*variables, mesh_lib.to_devices(batch, mesh))
      if previous is not None:
        evaluator.update(jax.device_get(previous))
      previous = current
    if previous is not None:
      evaluator.update(jax.device_get(previous))
    if batches.damaged:
      logger.warning('%d images could not be evaluated.', batches.damaged)
  return evaluator.result()


def _evaluate_checkpoint(config, task, mesh, workdir, checkpoint):
  """Evaluates stored weights; see `run`."""
  if checkpoint.isdigit():
    path = workdir / files.CHECKPOINTS / checkpoint
  elif checkpoint:
    path = checkpoint
  elif config.init_from and not (workdir / files.CHECKPOINTS).exists():
    path = config.init_from
  else:
    path = workdir
  path = weights.find(path)
  shapes = jax.eval_shape(task.init, jax.random.key(config.seed))
  variables = weights.assign(
    state_lib.with_shardings(shapes, mesh), weights.load_weights(path)
  )
  params = variables.pop('params')
  logger.info('Evaluating %s.', path)
  metrics = evaluate(
    task, state_lib.jit_predict(task, mesh), (params, variables), mesh
  )
  step = int(path.name) if path.name.isdigit() else 0
  if jax.process_index() == 0:
    named = {f'eval/{name}': value for name, value in metrics.items()}
    print(json.dumps({'step': step} | named))
  return metrics
