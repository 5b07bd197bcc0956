"""What the training loop asks of a problem, and the table of problems."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
from jaxtyping import Array, Float32, PRNGKeyArray, Shaped

from acmix_jax import lookup
from acmix_jax.tasks import classification, detection, segmentation

_TASKS = {
  'classification': classification.Classification,
  'detection': detection.Detection,
  'segmentation': segmentation.Segmentation,
}


class Batches(Protocol):
  """An iterator of batches: dicts of numpy arrays with this process's rows.

  The arrays of a batch have the shapes of one of the canvases of
  `Task.batch_shapes`, divided among the processes along the leading axis. The
  canvas of a batch is the same on all processes.

  Attributes:
    damaged: Examples that this process could not read so far.
    names: What leads a person to the examples of the last batch.
  """

  damaged: int
  names: Sequence[str]

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Returns itself."""

  def __next__(self) -> dict[str, np.ndarray]:
    """Next batch."""

  def close(self) -> None:
    """Ends threads and workers."""


class Evaluator(Protocol):
  """Accumulates the predictions of one pass over the evaluation split.

  It lives on the host of process 0 alone, and sees all examples there: results
  that are no mean over examples, such as average precision, need no exchange.
  """

  def update(self, predictions: Any) -> None:
    """Takes what `Task.predict` returned for a batch, as numpy arrays."""

  def result(self) -> dict[str, float]:
    """Metrics of everything that was given: Python floats and ints."""

  def arrays(self) -> dict[str, np.ndarray]:
    """What of it pictures are drawn of beside the metrics, {} for nothing."""


class Task(Protocol):
  """One problem: its data, loss and metrics. No loop, no jit, no device.

  Attributes:
    steps_per_epoch: Updates of one pass over the training split.
    best_metric: Metric of `Evaluator.result` by which checkpoints are compared;
      larger is better.
    replaceable: Regular expression of variables, e.g. 'params/head/', that
      `init_from` may lack or hold in another shape; they start afresh then.
    frozen: Regular expression of the paths of parameters that never change,
      e.g. '^backbone/stage1_'; '' for none.
  """

  steps_per_epoch: int
  best_metric: str
  replaceable: str
  frozen: str

  def train_data(
    self, start_step: int, process_index: int, process_count: int
  ) -> Batches:
    """Endless batches; the first is the one of update `start_step`."""

  def eval_data(self, process_index: int, process_count: int) -> Batches:
    """One pass; as many batches on every process, the last one padded."""

  def batch_shapes(
    self, split: str
  ) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
    """Shapes of the batches of all processes together, one dict a canvas.

    Batches differ in shape by canvas alone, e.g. landscape and portrait: the
    update is compiled once for each. Those of 'train' need no data: a config
    can be compiled where there is none. Those of 'eval' may depend on the sizes
    of the images, which are read then.

    Args:
      split: 'train' or 'eval'.
    """

  def description(self, split: str) -> dict[str, Any]:
    """What of the data is kept with weights and compared with other data.

    Args:
      split: 'train' or 'eval'; nothing of the other is opened.

    Returns:
      What JSON can hold: `class_names`, the names of the classes by label, and
      `images`, the number of images of the split; {} for a task with neither.
    """

  def init(self, rng: PRNGKeyArray) -> dict[str, Any]:
    """Variables of the model: {'params', and what else it has}."""

  def loss(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
    rng: PRNGKeyArray,
  ) -> tuple[Float32[Array, ''], tuple[Any, dict[str, Float32[Array, '']]]]:
    """(loss, (model_state, metrics)), for training."""

  def predict(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> Any:
    """What the evaluator needs of a batch, and no more: any tree of arrays.

    Either arrays with a row for each example, among them what the batch says
    about the example (its id, the size of its picture, the mask of examples
    that pad the last batch): detections of a fixed number, for instance. Or a
    sum over the examples, made on the devices: a confusion matrix [k, k], where
    that suffices, is less to move than the labels of all pixels.

    Arrays pass through jax: integers arrive with 32 bits.
    """

  def evaluator(self) -> Evaluator:
    """A new, empty evaluator."""

  def inference_batch(self, image: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of one image for `infer`, transformed as in evaluation.

    Its shapes depend on the size of the image alone. Needs no data.

    Args:
      image: Any image, uint8 RGB [h, w, 3].
    """

  def infer(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> dict[str, Shaped[Array, 'b ...']]:
    """What the model says of images without labels, in their own pixels.

    Returns:
      Either 'probabilities', [b, k]: of the classes of each image; or
      'label_map', int [b, h, w]: the class of each pixel of the images that
      `inference_batch` was given; or of n objects, best first, 'boxes',
      [b, n, 4], in pixels of these images, 'scores' and 'labels', [b, n],
      'valid', [b, n]: which are no padding, and perhaps 'masks', [b, n, m, m]:
      probabilities of the cells of a box.
    """


def make_task(config: ml_collections.ConfigDict) -> Task:
  """Task named by `config.task`.

  Raises:
    ValueError: Unknown name, or fields that the task refuses.
  """
  return lookup.find(_TASKS, config.task, 'task')(config)
