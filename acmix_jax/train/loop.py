"""Training of any task: the only place with the order of steps.

Step n is the n-th update. After it come, where due, in this order: the log
line, the evaluation, the checkpoint. SIGTERM and Ctrl-C are heard after an
update, while a batch is awaited, and within an evaluation. The last update is
saved then, and an evaluation that is due is left, for the machine may have no
time for it; the resumed training makes it, and goes on as a training that was
never stopped. An error of the input or of an evaluation is raised after the
same: it costs no update.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator

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


@dataclasses.dataclass
class _Progress:
  """What a training has reached.

  Attributes:
    step: Number of updates.
    state: State after them.
    window: Metrics of those that are not logged yet.
    eval_owed: Whether an evaluation of the state is due and not made.
  """

  step: int
  state: state_lib.TrainState
  window: window_lib.Window
  eval_owed: bool

  @contextlib.contextmanager
  def kept(self, checkpoints: checkpoint_lib.Checkpoints) -> Iterator[None]:
    """Context that saves the progress before it lets an error pass.

    Not for an update, which consumes the state. A state whose loss is not
    finite is not saved, nor what a single one of several processes fails at,
    which the others do not know of.
    """
    try:
      yield
    except window_lib.NonFiniteError:
      raise
    except Exception as error:
      stopped = isinstance(error, preemption.StopRequested)
      unsaved = self.step != checkpoints.latest_step()
      # Before the first update an error has nothing to lose.
      if unsaved and (stopped or (self.step and processes.all_fail())):
        checkpoints.save(
          self.state, self.step, self.window.read(), interrupted=self.eval_owed
        )
      if self.step == checkpoints.latest_step():
        reason = error if stopped else type(error).__name__
        logger.info(
          '%s: saved step %d; run again to resume.', reason, self.step
        )
      raise


def _train(training: build.Training, workdir: pathlib.Path) -> dict[str, float]:
  """Trains to the end, or until it is asked to stop; see `run`."""
  num_steps, evaluated = training.num_steps, {}
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
    now = _start(training, checkpoints)
    start_step = now.step
    log = writer.TrainingLog(
      workdir, training.config, start_step, num_steps, now.eval_owed
    )
    stack.callback(log.close)
    first_step = start_step if now.eval_owed else start_step + 1
    if first_step > num_steps:
      logger.info('Nothing to do: step %d of %d.', start_step, num_steps)
      return evaluated
    batches = reader.Reader(_train_data(training, start_step), stop)
    stack.callback(batches.close)
    stack.enter_context(contextlib.suppress(preemption.StopRequested))

    for step in range(first_step, num_steps + 1):
      if step > start_step:
        with now.kept(checkpoints):
          batch = mesh_lib.to_devices(next(batches), training.mesh)
        now.state, metrics = training.update(now.state, batch)
        now.window.add(metrics, batches.names)
        now.step, now.eval_owed = step, _due('eval', step, training)
        if step == start_step + 1:
          # Compilation is over: only what follows tells the speed.
          jax.block_until_ready(metrics)
          log.start_clock(step)
        if _due('log', step, training):
          means, rate = now.window.flush(), float(training.schedule(step - 1))
          log.train(step, means, rate, now.state.params, batches.damaged)
      with now.kept(checkpoints):
        stop.check()
        if now.eval_owed or _due('checkpoint', step, training):
          values, metrics = now.window.read(), {}
          with log.clock_paused(step):
            if now.eval_owed:
              metrics = evaluated = evaluate.evaluate(
                training, *now.state.evaluated(), stop, workdir
              )
              log.eval(step, evaluated)
            # An evaluated state is always saved, so that the best one is
            # there; that of an interrupted step is saved already.
            if step > start_step:
              checkpoints.save(now.state, step, values, metrics)
  return evaluated


def _train_data(training: build.Training, start_step: int) -> tasks.Batches:
  return training.task.train_data(
    start_step, jax.process_index(), jax.process_count()
  )


def _due(what: str, step: int, training: build.Training) -> bool:
  """Whether a step ends an interval, 0 for an epoch, or the training."""
  every_steps = training.config.train[f'{what}_every_steps']
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
) -> _Progress:
  config, task = training.config, training.task
  # What a training starts from is the first of these that there is:
  # 1. the latest whole checkpoint of its workdir, which it resumes;
  restored = checkpoints.restore_latest(training.state_shapes)
  if restored is not None:
    logger.info('Resuming after step %d.', restored.step)
    window = window_lib.Window(restored.step, restored.window)
    return _Progress(
      restored.step, restored.state, window, restored.interrupted
    )
  # 2. the weights that `init_from` names, with fresh ones where they may lack;
  if config.init_from:
    path = weights.find(config.init_from)
    logger.info('Starting from %s.', path)
    description.note_start(
      weights.load_description(path), task.description('train'), path
    )
    variables = training.stored_variables(path, task.replaceable, first=True)
    state = training.start(variables)
  # 3. random variables.
  else:
    state = training.init(jax.random.key(config.seed))
  return _Progress(0, state, window_lib.Window(0), eval_owed=False)
