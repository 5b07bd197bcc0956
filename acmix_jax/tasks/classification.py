"""Image classification: cross-entropy training, top-1 and top-5."""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from clu import metrics
from jaxtyping import Array, Float, Float32, Int, PRNGKeyArray, Shaped, UInt8

from acmix_jax.data.transforms import classification as transforms
from acmix_jax.tasks import batch_augment, source_task


def smooth_labels(
  labels: Int[Array, ' b'], num_classes: int, smoothing: float, over: str
) -> Float32[Array, 'b k']:
  """Target distributions with part of the mass moved to other classes.

  Args:
    labels: Classes, from 0.
    num_classes: Number of classes k.
    smoothing: Moved mass, in [0, 1).
    over: 'others': k - 1 classes get smoothing / (k - 1) each, the label keeps
      1 - smoothing (official ACmix and SAN code). 'all': every class gets
      smoothing / k, the label that on top (timm, torch's label_smoothing).

  Returns:
    Distributions over the classes; rows sum to 1, also where k is 1.
  """
  one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  if num_classes == 1:
    return one_hot
  if over == 'others':
    off = smoothing / (num_classes - 1)
    return one_hot * (1 - smoothing - off) + off
  return one_hot * (1 - smoothing) + smoothing / num_classes


def cross_entropy(
  logits: Float[Array, 'b k'], targets: Float[Array, 'b k']
) -> Float32[Array, ' b']:
  """-sum(targets * log_softmax(logits)) over the classes, in float32."""
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.sum(targets * log_probs, axis=-1)


def in_top(
  logits: Float[Array, 'b k'], labels: Int[Array, ' b'], count: int
) -> Float32[Array, ' b']:
  """1.0 where the label is among the `count` largest logits, else 0.0."""
  _, best = jax.lax.top_k(logits, min(count, logits.shape[-1]))
  return jnp.any(best == labels[:, None], axis=-1).astype(jnp.float32)


@flax.struct.dataclass
class EvalMetrics(metrics.Collection):
  """Means over the examples whose mask is set."""

  loss: metrics.Average.from_output('loss')
  top1: metrics.Average.from_output('top1')
  top5: metrics.Average.from_output('top5')


class Evaluator:
  """Accumulates per-example results into means."""

  def __init__(self):
    self._metrics = EvalMetrics.empty()

  def update(self, predictions: dict[str, Shaped[np.ndarray, ' b']]) -> None:
    """Takes 'loss', 'top1', 'top5' and 'mask' of each example."""
    self._metrics = self._metrics.merge(
      EvalMetrics.single_from_model_output(**predictions)
    )

  def result(self) -> dict[str, float]:
    """Mean 'loss', 'top1', 'top5' (fractions), and 'count' of examples.

    Raises:
      ValueError: there was no example.
    """
    count = int(self._metrics.loss.count)
    if not count:
      raise ValueError(
        'Nothing was evaluated: no image of the evaluation split could be '
        'read. The warnings above name them; check data.dir and '
        'data.eval_split.'
      )
    values = {k: float(v) for k, v in self._metrics.compute().items()}
    return values | {'count': count}

  def arrays(self) -> dict[str, np.ndarray]:
    """See `tasks.Evaluator`."""
    return {}


class Classification(source_task.SourceTask):
  """See `tasks.Task`. Labels are class indices, one for an image.

  Raises:
    ValueError: A smoothing, normalisation, transform or augmentation out of
      range, or what the data holds differs from `model.num_classes` or is of
      one class.
  """

  best_metric = 'top1'
  replaceable = r'^params/head/'
  _labels = 'classes'

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self._eval_transform = transforms.eval_transform(config.data)

  @functools.cached_property
  def _train_transform(self):
    return transforms.train_transform(self.config.data)

  @functools.cached_property
  def _erase(self):
    return batch_augment.RandomErasing(self.config.augment.erasing_probability)

  @functools.cached_property
  def _mixup_cutmix(self):
    augment = self.config.augment
    return batch_augment.MixupCutmix(
      augment.mixup_alpha,
      augment.cutmix_alpha,
      augment.mixup_probability,
      augment.mixup_switch_probability,
      augment.mixup_group_size,
    )

  def _check_training(self):
    super()._check_training()
    _ = self._erase, self._mixup_cutmix
    loss = self.config.loss
    if loss.smooth_over not in ('others', 'all'):
      raise ValueError(
        f"loss.smooth_over={loss.smooth_over!r} is neither 'others' nor 'all'."
      )
    if not 0 <= loss.label_smoothing < 1:
      raise ValueError(
        f'loss.label_smoothing={loss.label_smoothing} is not in [0, 1).'
      )

  def _check_source(self, source):
    if source.num_classes < 2:
      raise ValueError(
        f'Data {self.config.data.name!r} has the one class '
        f'{source.class_names[0]!r} ({source.origin}); classification needs '
        'two or more.'
      )

  def batch_shapes(self, split):
    """See `tasks.Task`."""
    if split == 'train':
      self._check_training()
    size = self.config.data.image_size
    arrays = {
      'image': ((size, size, 3), jnp.uint8),
      'label': ((), jnp.int32),
      'mask': ((), jnp.bool_),
    }
    return (self._shapes(split, arrays),)

  def init(self, rng: PRNGKeyArray) -> dict[str, Any]:
    """See `tasks.Task`."""
    size = self.config.data.image_size
    return self.model.init(rng, jnp.zeros((1, size, size, 3)))

  def loss(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
    rng: PRNGKeyArray,
  ) -> tuple[Float32[Array, ''], tuple[Any, dict[str, Float32[Array, '']]]]:
    """See `tasks.Task`.

    Metrics are 'top1' and 'top5' of the batch; of a blended image the class
    with the greater share counts.
    """
    dropout_key, erasing_key, mixup_key = jax.random.split(rng, 3)
    targets = smooth_labels(
      batch['label'],
      self.config.model.num_classes,
      self.config.loss.label_smoothing,
      self.config.loss.smooth_over,
    )
    images = self._erase(erasing_key, self._normalize(batch['image']))
    images, targets = self._mixup_cutmix(mixup_key, images, targets)
    logits, model_state = self._learn(
      params, model_state, images, train=True, rngs={'dropout': dropout_key}
    )
    loss = cross_entropy(logits, targets).mean()
    labels = jnp.argmax(targets, axis=-1)
    results = {
      'top1': in_top(logits, labels, 1).mean(),
      'top5': in_top(logits, labels, 5).mean(),
    }
    return loss, (model_state, results)

  def _logits(self, params, model_state, images):
    images = self._normalize(images)
    return self._apply(params, model_state, images, train=False)

  def predict(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> dict[str, Shaped[Array, ' b']]:
    """'loss' (not smoothed), 'top1', 'top5' and 'mask' of each example."""
    logits = self._logits(params, model_state, batch['image'])
    labels = batch['label']
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    return {
      'loss': cross_entropy(logits, one_hot),
      'top1': in_top(logits, labels, 1),
      'top5': in_top(logits, labels, 5),
      'mask': batch['mask'],
    }

  def evaluator(self):
    """See `tasks.Task`."""
    return Evaluator()

  def inference_batch(
    self, image: UInt8[np.ndarray, 'h w 3']
  ) -> dict[str, np.ndarray]:
    """See `tasks.Task`: the square that evaluation cuts out."""
    example = self._eval_transform({'image': image}, np.random.default_rng(0))
    return {'image': example['image'][None]}

  def infer(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> dict[str, Float32[Array, 'b k']]:
    """See `tasks.Task`: 'probabilities'."""
    logits = self._logits(params, model_state, batch['image'])
    return {'probabilities': jax.nn.softmax(logits)}
