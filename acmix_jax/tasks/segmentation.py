"""Semantic segmentation: cross-entropy of pixels, mean intersection over union.

Labels are maps of classes from 0, and 255 where a pixel does not count.
"""

import functools
import logging
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float32, Int32, PRNGKeyArray, Shaped, UInt8

from acmix_jax import lookup
from acmix_jax.data import label_audit, label_maps, sources
from acmix_jax.data.transforms import segmentation as transforms
from acmix_jax.metrics import confusion
from acmix_jax.tasks import pixel_loss, pixel_predictions, source_task

logger = logging.getLogger(__name__)

_IGNORED = label_maps.IGNORED
# Label files of a split that are looked at before anything is compiled.
_AUDITED = 100
_AVERAGES = ('all', 'valid')
_MODES = ('whole', 'slide')


class Evaluator:
  """Adds confusion matrices up; the scores are those of the whole split."""

  def __init__(self, class_names: tuple[str, ...]):
    self._class_names = class_names
    self._matrix = np.zeros((len(class_names),) * 2, np.int64)
    self._count = 0

  def update(self, predictions: dict[str, Shaped[np.ndarray, '...']]) -> None:
    """Takes 'confusion' and 'count', the number of images in it."""
    self._matrix += predictions['confusion']
    self._count += int(predictions['count'])

  def result(self) -> dict[str, float]:
    """Fractions 'mean_iou', 'mean_accuracy' and 'pixel_accuracy', and 'count'.

    'iou/NAME' follow, of the classes that were in the images or predicted,
    rounded to the hundredths of a percent that the sources print.

    Raises:
      ValueError: there was no image, or none with a label.
    """
    if not self._count:
      raise ValueError(
        'Nothing was evaluated: no image of the evaluation split could be '
        'read. The warnings above name them; check data.dir and '
        'data.eval_split.'
      )
    if not self._matrix.any():
      raise ValueError(
        'Nothing was evaluated: no pixel of the evaluation split has a label; '
        'all are ignored. What the label files hold: '
        'python -m acmix_jax.tools.prepare --help, --check.'
      )
    iou = confusion.intersection_over_union(self._matrix)
    means = {
      'mean_iou': float(np.nanmean(iou)),
      'mean_accuracy': float(
        np.nanmean(confusion.class_accuracy(self._matrix))
      ),
      'pixel_accuracy': confusion.pixel_accuracy(self._matrix),
      'count': self._count,
    }
    return means | {
      f'iou/{name}': round(float(value), 4)
      for name, value in zip(self._class_names, iou, strict=True)
      if not np.isnan(value)
    }

  def arrays(self) -> dict[str, np.ndarray]:
    """See `tasks.Evaluator`."""
    return {}


class Segmentation(source_task.SourceTask):
  """See `tasks.Task`.

  Raises:
    ValueError: A field out of range, or the data has other classes than
      `model.num_classes`.
  """

  best_metric = 'mean_iou'
  # What a classifier lacks, or has besides. The norms of Swin's stages and the
  # position of PVT's token are those that only dense prediction has.
  replaceable = (
    r'^(params|batch_stats)/(neck|head|auxiliary)/|'
    r'^params/backbone/stage\d+_(norm|token_position)'
  )

  _labels = 'label maps'

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    _check_eval(config.eval)

  @functools.cached_property
  def _train_transform(self):
    return transforms.train_transform(self.config.data)

  def _check_training(self):
    super()._check_training()
    average = self.config.loss.average
    if average not in _AVERAGES:
      raise ValueError(lookup.unknown('loss.average', average, _AVERAGES))

  def _check_source(self, source):
    if isinstance(source, sources.LabelFiles):
      report = label_audit.audit(source, limit=_AUDITED)
      report.check()
      logger.info('%s', report)

  @functools.cached_property
  def _eval_canvases(self):
    """(number of each image's canvas, the canvases)."""
    numbers, canvases = transforms.eval_canvases(
      self.config.data, self._eval_source.sizes
    )
    logger.info(
      'Evaluation of %d images on %d canvases; the prediction is compiled once '
      'for each.',
      len(numbers),
      len(canvases),
    )
    return numbers, canvases

  @property
  def _eval_examples(self):
    return sources.OnCanvases(self._eval_source, self._eval_canvases[0])

  @property
  def _eval_transform(self):
    return transforms.eval_transform(self.config.data, self._eval_canvases[1])

  def batch_shapes(self, split):
    """See `tasks.Task`: for 'eval' the sizes of the images are read."""

    def shapes(label, images):
      arrays = {
        'label_map': (label, jnp.uint8),
        'size': ((2,), jnp.int32),
        'mask': ((), jnp.bool_),
      } | {key: ((*size, 3), jnp.uint8) for key, size in images.items()}
      return self._shapes(split, arrays)

    if split == 'train':
      self._check_training()
      crop = (self.config.data.crop_size,) * 2
      return (shapes(crop, {'image': crop}),)
    return tuple(
      shapes(
        canvas.label, dict(zip(self._image_keys, canvas.inputs, strict=True))
      )
      for canvas in self._eval_canvases[1]
    )

  @property
  def _image_keys(self):
    return transforms.image_keys(self.config.data.eval_ratios)

  def init(self, rng: PRNGKeyArray) -> dict[str, Any]:
    """See `tasks.Task`."""
    # Not that of a training crop, which evaluation does not know.
    size = min(self.config.data.image_scale)
    return self.model.init(rng, jnp.zeros((1, size, size, 3)))

  def loss(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
    rng: PRNGKeyArray,
  ) -> tuple[Float32[Array, ''], tuple[Any, dict[str, Float32[Array, '']]]]:
    """See `tasks.Task`.

    The metric is 'pixel_accuracy' over the labelled pixels. A model with an
    auxiliary head has 'head_loss' and 'auxiliary_loss', too: the loss is the
    first plus `loss.auxiliary_weight` times the second.
    """
    labels = batch['label_map']
    logits, model_state = self._learn(
      params,
      model_state,
      self._padded_images(batch),
      method='training_logits',
      rngs={'dropout': rng},
    )
    sums = {
      name: pixel_loss.pixel_sums(x, labels, _IGNORED)
      for name, x in logits.items()
    }
    labelled = jnp.maximum(sums['head'].labelled, 1)
    pixels = labels.size if self.config.loss.average == 'all' else labelled
    loss = sums['head'].loss / pixels
    results = {'pixel_accuracy': sums['head'].correct / labelled}
    if 'auxiliary' in sums:
      auxiliary = sums['auxiliary'].loss / pixels
      results |= {'head_loss': loss, 'auxiliary_loss': auxiliary}
      loss += self.config.loss.auxiliary_weight * auxiliary
    return loss, (model_state, results)

  def class_maps(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> Int32[Array, 'b h w']:
    """The predicted class of each pixel, at the images' own sizes.

    Args:
      params: parameters.
      model_state: other variables.
      batch: of an evaluation. The result has the size of its label maps, and
        means nothing beyond `size`.
    """
    settings = self.config.eval

    def windows(side):
      if settings.mode == 'whole':
        return pixel_predictions.Windows.whole(side)
      return pixel_predictions.Windows.sliding(
        side, settings.window, settings.stride
      )

    model = functools.partial(self._apply, params, model_state, train=False)
    views = [
      pixel_predictions.make_view(
        model,
        self._normalize(batch[key]),
        tuple(windows(side) for side in batch[key].shape[1:3]),
        mirrored,
      )
      for key in self._image_keys
      for mirrored in ((False, True) if settings.flip else (False,))
    ]
    return pixel_predictions.class_maps(
      views, batch['size'], batch['label_map'].shape[1:]
    )

  def predict(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> dict[str, Int32[Array, '...']]:
    """The 'confusion' matrix of the batch, and the 'count' of its images."""
    labels, mask = batch['label_map'], batch['mask']
    return {
      'confusion': pixel_predictions.confusion_matrix(
        self.class_maps(params, model_state, batch),
        jnp.where(mask[:, None, None], labels, _IGNORED),
        self.config.model.num_classes,
      ),
      'count': mask.sum(dtype=jnp.int32),
    }

  def evaluator(self):
    """See `tasks.Task`."""
    return Evaluator(self._eval_source.class_names)

  def inference_batch(
    self, image: UInt8[np.ndarray, 'h w 3']
  ) -> dict[str, np.ndarray]:
    """See `tasks.Task`: the image on a canvas of its own."""
    size = image.shape[:2]
    _, canvases = transforms.eval_canvases(self.config.data, np.array([size]))
    unlabelled = np.full(size, _IGNORED, np.uint8)
    example = transforms.eval_transform(self.config.data, canvases)(
      {'image': image, 'label_map': unlabelled}, np.random.default_rng(0)
    )
    return {key: value[None] for key, value in example.items()}

  def infer(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> dict[str, Int32[Array, 'b h w']]:
    """See `tasks.Task`: 'label_map'."""
    return {'label_map': self.class_maps(params, model_state, batch)}


def _check_eval(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a field of section `eval` that cannot work."""
  if config.mode not in _MODES:
    raise ValueError(lookup.unknown('eval.mode', config.mode, _MODES))
  window, stride = config.window, config.stride
  if not 1 <= stride <= window:
    raise ValueError(
      f'eval.stride={stride} is not in 1..eval.window={window}: windows would '
      'leave pixels out.'
    )
