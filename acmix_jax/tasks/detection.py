"""Detection of objects: boxes, and masks, with average precision as of COCO."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float32, PRNGKeyArray, Shaped, UInt8

from acmix_jax.data import sources
from acmix_jax.data.sources import coco as coco_source
from acmix_jax.data.transforms import detection as transforms
from acmix_jax.metrics import coco, paste
from acmix_jax.models import detection
from acmix_jax.tasks import source_task


class Evaluator:
  """Collects detections in pixels of the files; masks become run lengths."""

  def __init__(
    self,
    source: sources.Coco | sources.Objects,
    with_masks: bool,
    results_file: str = '',
  ):
    """Starts without detections.

    Args:
      source: the images that are evaluated.
      with_masks: whether masks are rated, too.
      results_file: JSON file for the detections; '': none.
    """
    self._precision = coco.AveragePrecision(
      source.annotations.to_coco(), with_masks=with_masks
    )
    self._class_names = source.class_names
    self._results_file = results_file
    self._count = 0

  def update(self, predictions: dict[str, Shaped[np.ndarray, 'b ...']]) -> None:
    """Takes what `Detection.predict` returns."""
    for row in np.flatnonzero(predictions['mask']):
      valid = predictions['valid'][row]
      boxes, scores, labels = (
        predictions[key][row][valid] for key in ('boxes', 'scores', 'labels')
      )
      masks = None
      if 'masks' in predictions:
        size = tuple(predictions['original_size'][row].tolist())
        masks = paste.paste(predictions['masks'][row][valid], boxes, size)
      self._precision.add(
        predictions['image_id'][row], boxes, scores, labels, masks
      )
      self._count += 1

  def result(self) -> dict[str, float]:
    """The twelve figures of COCO, fractions, and 'count' of images.

    They are 'box_ap', 'box_ap50', ... and, with masks, 'mask_ap', ...: the
    names of `metrics.coco.FIGURES`. 'box_ap/NAME' follow, of single classes,
    rounded to the tenths of a percent that are printed. What there is no object
    for is left out.

    Raises:
      ValueError: there was no image.
    """
    if not self._count:
      raise ValueError(
        'Nothing was evaluated: no image of the evaluation split could be '
        'read. The warnings above name them; check data.dir and '
        'data.eval_images.'
      )
    if self._results_file:
      self._precision.write(self._results_file)
    figures, classes = {}, {}
    for name, value in self._precision.result(per_class=True).items():
      kind, figure, *class_name = name.split('/', 2)
      key = f'{kind}_{figure.lower()}'
      if class_name:
        classes[f'{key}/{class_name[0]}'] = round(value, 3)
      else:
        figures[key] = value
    known = {
      key: value
      for key, value in (figures | classes).items()
      if not np.isnan(value) or key == Detection.best_metric
    }
    return known | {'count': self._count}

  def arrays(self) -> dict[str, np.ndarray]:
    """See `tasks.Evaluator`: what `tools.plots` draws.

    'class_names', and 'box_precision' and perhaps 'mask_precision', see
    `metrics.coco.AveragePrecision.precision`.
    """
    precision = self._precision.precision()
    return {'class_names': np.array(self._class_names)} | {
      f'{kind}_precision': x for kind, x in precision.items()
    }


class Detection(source_task.SourceTask):
  """See `tasks.Task`.

  Raises:
    ValueError: A field out of range, or the data has other classes than
      `model.num_classes`.
  """

  best_metric = 'box_ap'
  _labels = 'boxes'
  # What a classifier lacks, or has besides, and what of a detector of other
  # classes does not fit. The norms are those of Swin's stages.
  replaceable = (
    r'^(params|batch_stats)/(neck|head|rpn|(box|mask)_heads_\d+)/|'
    r'^params/backbone/stage\d+_norm'
  )

  def __init__(self, config: ml_collections.ConfigDict):
    super().__init__(config)
    self._with_masks = isinstance(self.model, detection.MaskRCNN)
    _check(config, self._with_masks)
    self._eval_transform = transforms.eval_transform(config.data)

  @functools.cached_property
  def _train_transform(self):
    return transforms.train_transform(self.config.data)

  def _check_training(self):
    super()._check_training()
    train = self.config.train
    parts, rows = train.accumulate_steps, train.batch_size
    group = self.config.model.images_per_group
    if group < 0 or (group and rows % (parts * group)):
      raise ValueError(
        f'model.images_per_group={group} does not divide '
        f'train.batch_size={rows}'
        + (f' / train.accumulate_steps={parts}' if parts > 1 else '')
        + '; give a divisor, or 0 for one group.'
      )

  def _check_source(self, source):
    data = self.config.data
    if source.canvases is None and len(data.canvases) > 1:
      raise ValueError(
        f'data.canvases={data.canvases}, but all images of data {data.name!r} '
        'share one canvas; give one.'
      )

  def batch_shapes(self, split):
    """See `tasks.Task`: one dict for each of `data.canvases`."""
    data = self.config.data
    shapes = {
      'size': ((2,), jnp.int32),
      'image_id': ((), jnp.int32),
      'mask': ((), jnp.bool_),
    }
    if split == 'train':
      self._check_training()
      objects, side = data.max_objects, data.mask_size
      shapes |= {
        'boxes': ((objects, 4), jnp.float32),
        'labels': ((objects,), jnp.int32),
        'valid': ((objects,), jnp.bool_),
      }
      if side:
        shapes['masks'] = (objects, side, side // 8), jnp.uint8
        shapes['mask_regions'] = (objects, 4), jnp.float32
    else:
      shapes |= {
        'original_size': ((2,), jnp.int32),
        'scale': ((2,), jnp.float32),
      }
    return tuple(
      self._shapes(split, {'image': ((*canvas, 3), jnp.uint8)} | shapes)
      for canvas in data.canvases
    )

  def init(self, rng: PRNGKeyArray) -> dict[str, Any]:
    """See `tasks.Task`."""
    canvas = self.config.data.canvases[0]
    images = jnp.zeros((1, *canvas, 3))
    return self.model.init(rng, images, method='networks')

  def loss(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
    rng: PRNGKeyArray,
  ) -> tuple[Float32[Array, ''], tuple[Any, dict[str, Float32[Array, '']]]]:
    """See `tasks.Task`.

    The metrics are the losses of the model's heads, summed over the levels of
    the pyramid, and what else its method `losses` returns.
    """
    truth = detection.GroundTruth(
      batch['boxes'], batch['labels'], batch['valid']
    )
    if self._with_masks:
      bitmaps = jnp.unpackbits(batch['masks'], axis=-1)
      truth = truth._replace(masks=bitmaps, regions=batch['mask_regions'])
    sampling_key, dropout_key = jax.random.split(rng)
    losses, model_state = self._learn(
      params,
      model_state,
      self._padded_images(batch),
      batch['size'],
      truth,
      train=True,
      method='losses',
      rngs={'sampling': sampling_key, 'dropout': dropout_key},
    )
    metrics = {name: x.sum() for name, x in losses.items()}
    return detection.total(losses), (model_state, metrics)

  def infer(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> dict[str, Shaped[Array, 'b ...']]:
    """See `tasks.Task`: the fields of `Detections`."""
    found = self._apply(
      params,
      model_state,
      self._padded_images(batch),
      batch['size'],
      train=False,
    )
    scale = jnp.tile(batch['scale'], 2)[:, None]
    found = found._replace(boxes=found.boxes / scale)
    return {k: x for k, x in found._asdict().items() if x is not None}

  def predict(
    self,
    params: Any,
    model_state: Any,
    batch: dict[str, Shaped[Array, 'b ...']],
  ) -> dict[str, Shaped[Array, 'b ...']]:
    """What `infer` returns, and of the batch what places it."""
    notes = {key: batch[key] for key in ('image_id', 'original_size', 'mask')}
    return self.infer(params, model_state, batch) | notes

  def evaluator(self):
    """See `tasks.Task`."""
    return Evaluator(
      self._eval_source, self._with_masks, self.config.eval.results_file
    )

  def inference_batch(
    self, image: UInt8[np.ndarray, 'h w 3']
  ) -> dict[str, np.ndarray]:
    """See `tasks.Task`: the image on the canvas of its orientation."""
    canvas = coco_source.orientation(np.array([image.shape[:2]])).item()
    example = self._eval_transform(
      {
        'image': image,
        'boxes': np.zeros((0, 4), np.float32),
        'labels': np.zeros(0, np.int32),
        'masks': np.zeros((0, *image.shape[:2]), bool),
        'image_id': 0,
        'canvas': canvas,
      },
      np.random.default_rng(0),
    )
    return {key: value[None] for key, value in example.items()}


def _check(config: ml_collections.ConfigDict, with_masks: bool) -> None:
  """Raises ValueError for a field that cannot work."""
  data, model = config.data, config.model
  if with_masks != bool(data.mask_size):
    raise ValueError(
      f'data.mask_size={data.mask_size}, but {model.name} learns masks; e.g. '
      '112.'
      if with_masks
      else f'data.mask_size={data.mask_size}, but {model.name} learns boxes '
      'alone; set it to 0.'
    )
  file = config.eval.results_file
  folder = os.path.dirname(os.path.abspath(file))
  if file and not os.path.isdir(folder):
    raise ValueError(
      f'eval.results_file={file!r}: there is no folder {folder}.'
    )
