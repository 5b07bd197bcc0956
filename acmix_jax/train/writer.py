"""Output of a training: JSON, TensorBoard, arrays of the evaluation, the log.

Only process 0 writes. `clu.metric_writers` is not used: it imports TensorFlow.
"""

import contextlib
import datetime
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorboardX

from acmix_jax.train import groups, recorded_config
from acmix_jax.train import workdir as workdir_lib

logger = logging.getLogger(__name__)


def json_line(step: int, values: dict[str, float]) -> str:
  """The values of a step as JSON, such as '{"step": 5, "eval/top1": 0.9}'.

  JSON has no nan and no infinity: they are written as null.
  """
  finite = {
    name: value if math.isfinite(value) else None
    for name, value in values.items()
  }
  return json.dumps({'step': step} | finite)


def write_arrays(
  workdir: pathlib.Path, arrays: Mapping[str, np.ndarray]
) -> None:
  """Writes what `tools.plots` draws of the last evaluation: evaluation.npz.

  A folder that cannot be written, of someone else's training that is evaluated,
  is named in the log.

  Args:
    workdir: folder of the training.
    arrays: see `tasks.Evaluator`; without any there is no file.
  """
  if not arrays:
    return
  path = workdir / 'evaluation.npz'
  # Atomic: it may be drawn meanwhile.
  temporary = path.with_suffix('.tmp')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as file:
      np.savez_compressed(file, **arrays)
    os.replace(temporary, path)
  except OSError as error:
    logger.warning('%s was not written: %s', path, error)


class MetricsWriter:
  """Writes one JSON object a line, and the same scalars to TensorBoard."""

  def __init__(self, workdir: pathlib.Path, start_step: int, eval_owed: bool):
    """Opens the files of a training that goes on after `start_step`.

    Lines of later steps are removed: the resumed training writes them again;
    if it owes the evaluation of this step, the line of that one, too.
    """
    path = workdir / 'metrics.jsonl'

    def is_kept(line):
      owed = eval_owed and any(name.startswith('eval/') for name in line)
      return int(line['step']) <= start_step - owed

    _keep_lines(path, is_kept)
    self._file = path.open('a')
    self._tensorboard = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start_step + 1
    )

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes the values of a step, by name."""
    self._file.write(json_line(step, values) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._tensorboard.add_scalar(name, value, step)
    self._tensorboard.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._tensorboard.close()


def _keep_lines(path: pathlib.Path, is_kept: Callable[[dict], bool]) -> None:
  """Removes the other lines; a file with unreadable ones is set aside."""
  if not path.exists():
    return
  kept, unreadable = [], []
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    try:
      if is_kept(json.loads(line)):
        kept.append(line + b'\n')
    # Half a line of a killed process, or no object, or one without a step.
    except (ValueError, TypeError, KeyError):
      unreadable.append(number)
  # Atomic: a process killed here leaves the old file or the new one.
  temporary = path.with_suffix('.tmp')
  temporary.write_bytes(b''.join(kept))
  if unreadable:
    logger.warning(
      '%d lines of %s cannot be read, the first of them line %d. The file is '
      'kept as %s; training goes on with its other lines.',
      len(unreadable),
      path,
      unreadable[0],
      workdir_lib.move_aside(path),
    )
  os.replace(temporary, path)


class TrainingLog:
  """Reports of a training: metrics to the files, progress to the user.

  Progress is one line rewritten in place on a terminal, log lines elsewhere.
  Speed and remaining time are those of the updates alone: the loop starts the
  clock when the first update is done, and pauses it to evaluate or save.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    start_step: int,
    num_steps: int,
    eval_owed: bool = False,
  ):
    """Writes config.json and opens the files, see `MetricsWriter`."""
    self._visible = jax.process_index() == 0
    if self._visible:
      recorded_config.write(workdir, config)
      self._files = MetricsWriter(workdir, start_step, eval_owed)
    self._batch_size = config.train.batch_size
    self._num_steps = num_steps
    # Terminals of editors and of old kinds cannot rewrite a line.
    dumb = os.environ.get('TERM', 'dumb') == 'dumb'
    self._terminal = sys.stderr.isatty() and not dumb
    self._line_is_open = False
    self._started = None
    self._seconds, self._steps, self._damaged = 0.0, 0, 0

  def start_clock(self, step: int) -> None:
    """Times the steps after `step`."""
    self._started = time.monotonic(), step

  @contextlib.contextmanager
  def clock_paused(self, step: int) -> Iterator[None]:
    """Context of work after `step`, which the devices have finished."""
    self._stop_clock(step)
    yield
    self.start_clock(step)

  def _stop_clock(self, step):
    if self._started is not None:
      start_time, start_step = self._started
      self._seconds += time.monotonic() - start_time
      self._steps += step - start_step

  def train(
    self,
    step: int,
    means: dict[str, float],
    learning_rate: float,
    params: Any,
    damaged: int,
  ) -> None:
    """Reports on the steps since the last report.

    Args:
      step: last of these steps, which the devices have finished.
      means: means of the metrics over these steps.
      learning_rate: learning rate of the last step.
      params: parameters; the scalars among them are written, e.g. the weights
        of ACmix's two paths.
      damaged: number of images that could not be read since the start.
    """
    values = {f'train/{name}': value for name, value in means.items()}
    values['train/learning_rate'] = learning_rate
    self._stop_clock(step)
    speed = None
    if self._steps:
      speed = self._steps * self._batch_size / self._seconds
      values['train/images_per_second'] = speed
      self._seconds, self._steps = 0.0, 0
    if damaged > self._damaged:
      logger.warning('%d images could not be read so far.', damaged)
      self._damaged = damaged
    if self._visible:
      self._files.write(step, values | _scalars(params))
      self._show(step, means, speed)
    self.start_clock(step)

  def eval(self, step: int, metrics: dict[str, float]) -> None:
    """Reports an evaluation.

    Metrics of single classes, such as 'iou/wall', go to the files alone.
    """
    if self._visible:
      values = {f'eval/{name}': value for name, value in metrics.items()}
      self._files.write(step, values)
      self._end_line()
      shown = {k: v for k, v in values.items() if k.count('/') == 1}
      logger.info('step %d  %s', step, _text(shown))

  def close(self) -> None:
    """Closes the files."""
    if self._visible:
      self._end_line()
      self._files.close()

  def _show(self, step, means, speed):
    text = f'step {step}/{self._num_steps}  {_text(means)}'
    if speed:
      seconds = (self._num_steps - step) * self._batch_size / speed
      eta = datetime.timedelta(seconds=round(seconds))
      text += f'  {speed:.0f} images/s  ETA {eta}'
    if self._terminal:
      print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)
      self._line_is_open = True
    else:
      logger.info('%s', text)

  def _end_line(self):
    if self._line_is_open:
      print(file=sys.stderr)
      self._line_is_open = False


def _scalars(params: Any) -> dict[str, float]:
  leaves = {
    groups.parameter_path(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if leaf.size == 1
  }
  return {
    f'params/{path}': leaf.item()
    for path, leaf in jax.device_get(leaves).items()
  }


def _text(values: dict[str, float]) -> str:
  return '  '.join(f'{name} {value:.4g}' for name, value in values.items())
