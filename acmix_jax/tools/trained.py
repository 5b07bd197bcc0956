"""What a training left, for the tools that use it."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import ml_collections

from acmix_jax import lookup, tasks, weights
from acmix_jax.train import recorded_config
from acmix_jax.weights import files


class Trained(NamedTuple):
  """A trained model.

  Attributes:
    path: The checkpoint or file with the weights.
    task: Task, whose `config` and `model` are those of the training.
    variables: Variables of the model, on one device.
    class_names: Names of the classes by label, as kept with the weights; 'class
      0', ... where none were.
  """

  path: pathlib.Path
  task: tasks.Task
  variables: dict[str, Any]
  class_names: tuple[str, ...]


def load(
  workdir: str | os.PathLike,
  config: ml_collections.ConfigDict | None = None,
  **fields: Any,
) -> Trained:
  """Reads a trained model; the data set is not needed.

  Args:
    workdir: folder of a training, or what else `weights.find` takes.
    config: see configs/common.py; None: the one that the training recorded.
    **fields: fields of `config.model` that are replaced in the recorded one.

  Raises:
    DamagedError: the checkpoint is damaged.
    ValueError: there are no such weights, they do not fit the config, or there
      is no config.
  """
  path = weights.find(workdir)
  task = (
    _recorded_task(path, fields) if config is None else tasks.make_task(config)
  )
  config = task.config
  count = config.model.num_classes
  names = weights.load_description(path).get('class_names')
  names = names or [f'class {i}' for i in range(count)]
  if len(names) != count:
    raise ValueError(
      f'{path} was trained on {len(names)} classes, and model.num_classes='
      f'{count}; set model.num_classes={len(names)}.'
    )
  variables = weights.assign(
    jax.eval_shape(task.init, jax.random.key(0)),
    weights.load_weights(path, average=config.load_average),
  )
  return Trained(path, task, variables, tuple(names))


@contextlib.contextmanager
def recorded(path: pathlib.Path) -> Iterator[ml_collections.ConfigDict]:
  """The config that a training recorded, for what a `with` does with it.

  Args:
    path: checkpoint of the training.

  Raises:
    ValueError: there is no such config, or it lacks a field that is needed.
  """
  if path.parent.name != files.CHECKPOINTS:
    raise ValueError(
      f'{path} belongs to no workdir, whose config would be used; give the '
      'config.'
    )
  workdir = path.parents[1]
  try:
    config = recorded_config.load(workdir)
  except FileNotFoundError as error:
    raise ValueError(
      f'{workdir} has no config.json; give the config.'
    ) from error
  try:
    yield config
  except lookup.UnknownName:
    raise
  except (AttributeError, KeyError) as error:
    # A workdir of an earlier version of the project.
    raise ValueError(
      f'The config.json of {workdir} lacks a field that is needed now: {error}.'
      ' Give the config.'
    ) from error


def _recorded_task(path, fields):
  with recorded(path) as config:
    config.model.update(fields)
    return tasks.make_task(config)
