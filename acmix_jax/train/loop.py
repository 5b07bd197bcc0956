"""Training of any task: the only place with the order of steps.

Step n is the n-th update. After it come, where due, in this order: the log
line, the evaluation, the checkpoint. SIGTERM and Ctrl-C are heard after an
update, while a batch is awaited, and within an evaluation. The last update is
saved then, and an evaluation that is due is left, for the machine may have no
time for it; the resumed training makes it, and goes on as a training that was
never stopped.
"""

import contextlib
import itertools
import logging
import os
import pathlib

import jax
import ml_collections
from clu import parameter_overview

from acmix_jax import lookup, tasks, weights
from acmix_jax.train import (
  build,
  description,
  evaluate,
  preemption,
  processes,
  reader,
  recorded_config,
  writer,
)
from acmix_jax.train import checkpoint as checkpoint_lib
from acmix_jax.train import mesh as mesh_lib
from acmix_jax.train import metrics_window as window_lib
from acmix_jax.train import state as state_lib
from acmix_jax.train import workdir as workdir_lib

logger = logging.getLogger(__name__)


def run(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  mode: str = 'train',
  checkpoint: str | os.PathLike = '',
) -> dict[str, float]:
  """Trains or evaluates what a config describes.

  Args:
    config: see configs/common.py.
    workdir: folder of the training on a file system that all processes see.
      'train' resumes from its latest checkpoint, or starts from
      `config.init_from`, or from random weights.
    mode: 'train', or 'eval': evaluates a checkpoint and prints its metrics.
    checkpoint: for 'eval': a step of the workdir, or a path like `init_from`;
      '' stands for the best checkpoint of the workdir, or for `init_from` if
      the workdir has none.

  Returns:
    Metrics of the last evaluation that was made.

  Raises:
    ValueError: a field that cannot work, before anything is compiled.
    NonFiniteError: the loss left the finite numbers; it names the images.
    InUseError: another training uses the workdir.
  """
  if mode not in ('train', 'eval'):
    raise ValueError(lookup.unknown('mode', mode, ('train', 'eval')))
  directory = workdir_lib.resolve(workdir)
  with processes.failing_together():
    mesh = mesh_lib.make_mesh(config.mesh)
    if mode == 'eval':
      return evaluate.evaluate_checkpoint(config, mesh, directory, checkpoint)
    with workdir_lib.Lock(directory):
      processes.by_process_0(lambda: recorded_config.check(directory, config))
      training = build.Training(config, mesh)
      if jax.process_index() == 0:
        _list_parameters(training, directory)
      return _train(training, directory)


def _list_parameters(training: build.Training, workdir: pathlib.Path) -> None:
  """Writes names, shapes and dtypes: hundreds of lines, not for the log."""
  path = workdir / 'parameters.txt'
  params = training.state_shapes.params
  overview = parameter_overview.get_parameter_overview(
    params, include_stats=False
  )
  path.write_text(f'{overview}\n')
  count = int(parameter_overview.count_parameters(params))
  logger.info('%s parameters, listed in %s.', f'{count:,}', path.name)


def _train(training: build.Training, workdir: pathlib.Path) -> dict[str, float]:
  """Trains to the end, or until it is asked to stop; see `run`."""
  every, num_steps = training.config.train, training.num_steps
  evaluated = {}
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(preemption.Preemption())
    checkpoints = checkpoint_lib.Checkpoints(
      workdir,
      best_metric=training.task.best_metric,
      description=training.task.description('train'),
      **training.config.checkpoint,
    )
    stack.callback(checkpoints.close)
    stack.enter_context(_naming_the_latest(checkpoints))
    state, window, eval_owed = _start(training, checkpoints)
    start_step = done = int(state.step)
    log = writer.TrainingLog(
      workdir, training.config, start_step, num_steps, eval_owed
    )
    stack.callback(log.close)
    first_step = start_step if eval_owed else start_step + 1
    if first_step > num_steps:
      logger.info('Nothing to do: step %d of %d.', start_step, num_steps)
      return evaluated
    batches = reader.Reader(_train_data(training, start_step), stop)
    stack.callback(batches.close)

    try:
      for step in range(first_step, num_steps + 1):
        if step > start_step:
          batch = mesh_lib.to_devices(next(batches), training.mesh)
          state, metrics = training.update(state, batch)
          window.add(metrics, batches.names)
          done, eval_owed = step, _due(step, every.eval_every_steps, training)
          if step == start_step + 1:
            # Compilation is over: only what follows tells the speed.
            jax.block_until_ready(metrics)
            log.start_clock(step)
          if _due(step, every.log_every_steps, training):
            means, rate = window.flush(), float(training.schedule(step - 1))
            log.train(step, means, rate, state.params, batches.damaged)
          stop.check()
        if eval_owed or _due(step, every.checkpoint_every_steps, training):
          values, metrics = window.read(), {}
          with log.clock_paused(step):
            if eval_owed:
              metrics = evaluated = evaluate.evaluate(
                training, *state.evaluated(), stop
              )
              log.eval(step, evaluated)
            # An evaluated state is always saved, so that the best one is
            # there; that of an interrupted step is saved already.
            if step > start_step:
              checkpoints.save(state, step, values, metrics)
    except preemption.StopRequested as request:
      if done != checkpoints.latest_step():
        checkpoints.save(state, done, window.read(), interrupted=eval_owed)
      logger.info('%s: saved step %d; run again to resume.', request, done)
  return evaluated


def _train_data(training: build.Training, start_step: int) -> tasks.Batches:
  return training.task.train_data(
    start_step, jax.process_index(), jax.process_count()
  )


def _due(step: int, every_steps: int, training: build.Training) -> bool:
  """Whether a step ends an interval, 0 for an epoch, or the training."""
  interval = every_steps or training.steps_per_epoch
  return step == training.num_steps or step % interval == 0


@contextlib.contextmanager
def _naming_the_latest(checkpoints: checkpoint_lib.Checkpoints):
  """Adds to the error about a loss that is not finite what helps."""
  try:
    yield
  except window_lib.NonFiniteError as error:
    step = checkpoints.latest_step()
    left = 'no checkpoint is left' if step is None else f'step {step} is saved'
    names = [*itertools.chain(*processes.from_all([*error.names]))]
    listing = '\n  '.join(['\nThe images of the update:', *names])
    raise window_lib.NonFiniteError(
      f'{error}; {left}.' + (listing if names else ''), names
    ) from error


def _start(
  training: build.Training, checkpoints: checkpoint_lib.Checkpoints
) -> tuple[state_lib.TrainState, window_lib.Window, bool]:
  """(state, window, whether its evaluation was due and not made)."""
  config, task = training.config, training.task
  # What a training starts from is the first of these that there is:
  # 1. the latest whole checkpoint of its workdir, which it resumes;
  restored = checkpoints.restore_latest(training.state_shapes)
  if restored is not None:
    logger.info('Resuming after step %d.', restored.step)
    window = window_lib.Window(restored.step, restored.window)
    return restored.state, window, restored.interrupted
  # 2. the weights that `init_from` names, with fresh ones where they may lack;
  rng = jax.random.key(config.seed)
  if config.init_from:
    path = weights.find(config.init_from)
    logger.info('Starting from %s.', path)
    description.note_start(
      weights.load_description(path), task.description('train'), path
    )
    variables = weights.assign(
      training.random_variables(rng),
      weights.load_weights(path, average=config.load_average),
      task.replaceable,
    )
    return training.start(variables), window_lib.Window(0), False
  # 3. random variables.
  return training.init(rng), window_lib.Window(0), False
