"""What the training loop asks of a problem, and the table of problems."""

from collections.abc import Iterator
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from acmix_jax.tasks import classification

_TASKS = {'classification': classification.Classification}


class Batches(Protocol):
  """An iterator of batches: dicts of numpy arrays, this process's rows."""

  damaged: int  # Examples that could not be read so far.

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Returns itself."""

  def __next__(self) -> dict[str, np.ndarray]:
    """Next batch."""

  def close(self) -> None:
    """Ends threads and workers."""


class Evaluator(Protocol):
  """Accumulates the predictions of one pass over the evaluation split."""

  def update(self, predictions: Any) -> None:
    """Takes the result of `Task.predict` for a batch, as numpy arrays."""

  def result(self) -> dict[str, float]:
    """Metrics over all that was given."""


class Task(Protocol):
  """One problem: its data, loss and metrics. No loop, no jit, no device.

  Attributes:
    steps_per_epoch: updates that one pass over the training split takes.
    best_metric: metric of `Evaluator.result` by which checkpoints are compared;
      larger is better.
    replaceable: regular expression of variables, e.g. 'params/head/', that
      `init_from` may lack or hold in another shape; they start afresh then.
  """

  steps_per_epoch: int
  best_metric: str
  replaceable: str

  def train_data(
    self, start_step: int, process_index: int, process_count: int
  ) -> Batches:
    """Endless batches; the first is the one of update `start_step`."""

  def eval_data(self, process_index: int, process_count: int) -> Batches:
    """One pass; as many batches on every process, the last one padded."""

  def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What the batches of all processes are together; needs no data."""

  def init(self, rng: jax.Array) -> dict[str, Any]:
    """Variables of the model: {'params', and what else it has}."""

  def loss(
    self, params: Any, model_state: Any, batch: dict, rng: jax.Array
  ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """(loss, (model_state, metrics)): float32 scalars, for training."""

  def predict(self, params: Any, model_state: Any, batch: dict) -> Any:
    """Arrays that the evaluator needs of a batch, and no more."""

  def evaluator(self) -> Evaluator:
    """A new, empty evaluator."""


def make_task(config: ml_collections.ConfigDict) -> Task:
  """Task named by `config.task`.

  Raises:
    ValueError: unknown name, or fields that the task refuses.
  """
  if config.task not in _TASKS:
    raise ValueError(
      f'task={config.task!r} is unknown; known: {", ".join(_TASKS)}.'
    )
  return _TASKS[config.task](config)
