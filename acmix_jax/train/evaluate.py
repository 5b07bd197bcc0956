"""One pass over the evaluation data, and the evaluation of stored weights."""

import contextlib
import logging
import math
import os
import pathlib
from typing import Any

import jax
import ml_collections

from acmix_jax import weights
from acmix_jax.train import (
  build,
  description,
  preemption,
  processes,
  reader,
  writer,
)
from acmix_jax.train import mesh as mesh_lib
from acmix_jax.weights import files

logger = logging.getLogger(__name__)


def evaluate(
  evaluation: build.Evaluation,
  params: Any,
  model_state: Any,
  stop: preemption.Preemption | None = None,
  workdir: pathlib.Path | None = None,
) -> dict[str, float]:
  """Metrics of a model's variables over the evaluation split.

  All processes predict; the evaluator runs on process 0, which sends its
  metrics to the others: every process returns the same.

  Args:
    evaluation: task, mesh and compiled prediction.
    params: parameters.
    model_state: other variables.
    stop: checked after each batch; None: only the end stops it.
    workdir: gets the evaluator's arrays, see `writer.write_arrays`; None: they
      are not kept.

  Raises:
    StopRequested: `stop` was requested before the end.
  """
  task, mesh = evaluation.task, evaluation.mesh
  stop = stop or preemption.Preemption()
  evaluator = task.evaluator() if jax.process_index() == 0 else None

  def count(predictions):
    # All processes wait, so that none puts the whole split on its devices.
    predictions = jax.block_until_ready(predictions)
    if evaluator is not None:
      evaluator.update(jax.device_get(predictions))

  batches = reader.Reader(
    task.eval_data(jax.process_index(), jax.process_count()), stop
  )
  with contextlib.closing(batches):
    # One batch behind: the devices work while the host counts.
    previous = None
    for batch in batches:
      batch = mesh_lib.to_devices(batch, mesh)
      current = evaluation.predict(params, model_state, batch)
      if previous is not None:
        count(previous)
      previous = current
      stop.check()
    if previous is not None:
      count(previous)
    if batches.damaged:
      logger.warning('%d images could not be evaluated.', batches.damaged)

  def rate():
    metrics = evaluator.result()
    if workdir is not None:
      writer.write_arrays(workdir, evaluator.arrays())
    return metrics

  return processes.by_process_0(rate)


def evaluate_checkpoint(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  workdir: pathlib.Path,
  checkpoint: str | os.PathLike,
) -> dict[str, float]:
  """Evaluates stored weights, prints a JSON line and returns the metrics.

  Args:
    config: see configs/common.py; what only training uses is not looked at.
    mesh: devices to evaluate on.
    workdir: folder of a training.
    checkpoint: see `loop.run`.

  Raises:
    ValueError: a field that cannot work, no such weights, weights of other
      classes, or nothing to evaluate.
  """
  evaluation = build.Evaluation(config, mesh)
  checkpoint, first = str(checkpoint), False
  if checkpoint.isdigit():
    path = workdir / files.CHECKPOINTS / checkpoint
  elif checkpoint:
    path = pathlib.Path(checkpoint)
  elif config.init_from and not (workdir / files.CHECKPOINTS).exists():
    path, first = pathlib.Path(config.init_from), True
  else:
    path = workdir
  path = weights.find(path)
  description.check_classes(
    weights.load_description(path), evaluation.task.description('eval'), path
  )
  model_state = evaluation.stored_variables(path, first=first)
  params = model_state.pop('params')
  logger.info('Evaluating %s.', path)
  metrics = evaluate(evaluation, params, model_state, workdir=workdir)
  if jax.process_index() == 0:
    step = int(path.name) if path.name.isdigit() else 0
    named = {f'eval/{name}': value for name, value in metrics.items()}
    print(writer.json_line(step, named))
  best_metric = evaluation.task.best_metric
  if not math.isfinite(metrics[best_metric]):
    raise ValueError(
      f'The evaluation gave no {best_metric}: no example could be read, or the '
      'outputs of the model are not finite.'
    )
  return metrics
