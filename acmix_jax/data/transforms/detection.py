"""The transforms with which detectors are trained and evaluated.

Fields of `config.data` that are read here; scales are (longer side, shorter
side) in pixels, within which an image is resized, keeping its aspect ratio:

  train_scales: scales of training images; one is drawn for each.
  crop_scales: scales of the first resize of every second training image, at
    random, which is then cropped and resized to one of `train_scales`; (): no
    image is cropped.
  crop_range: least and greatest height and width of these crops, in pixels.
  flip: probability that a training image is mirrored.
  eval_scale: scale of evaluated images.
  canvases: height and width of the padded images; with two of them the first is
    for images wider than high and the second for the others, see
    `sources.coco.orientation`.
  max_objects: rows for the objects of a training image; the largest are kept.
  mask_size: height and width of the masks, see `masks.Masks.pack`; 0: none.

Batch keys in training, for b images and G = max_objects:

  image: uint8 [b, h, w, 3] on the canvas, 0 beyond `size`. Normalisation is
    left to the device, which then sets what is beyond to 0 again, since the
    sources pad after normalisation.
  size: int32 [b, 2], height and width of the image on the canvas.
  boxes: float32 [b, G, 4], x1 y1 x2 y2 in pixels of the canvas.
  labels: int32 [b, G].
  valid: bool [b, G], False in rows without an object, where all else is 0.
  masks: uint8 [b, G, mask_size, mask_size / 8], bits, the highest leftmost.
  mask_regions: float32 [b, G, 4], what the masks show, x1 y1 x2 y2.
  image_id: int32 [b].

and in evaluation: image, size, image_id and

  original_size: int32 [b, 2], height and width of the image in its file.
  scale: float32 [b, 2], width and height on the canvas over those in the file.
"""

import dataclasses
import functools
import logging

import ml_collections
import numpy as np

from acmix_jax.data.transforms import (
  geometric,
  image,
  pad,
  rescale,
  transform,
)
from acmix_jax.data.transforms import masks as masks_lib
from acmix_jax.data.transforms.transform import Example

logger = logging.getLogger(__name__)

_Scales = tuple[tuple[int, int], ...]


def train_transform(config: ml_collections.ConfigDict) -> transform.Compose:
  """The training transform of `config.data`.

  Source: the training pipelines of PVT (resize, then flip) and, with
  `crop_scales`, of Swin (flip first) on mmdetection, draw for draw. Unlike
  there an image that would not fit its canvas, such as an upright crop of a
  wide image, is resized to fit; and a box of which no area is left is dropped
  after the last step, not after the crop.

  Returns:
    What turns `image` (a file, or uint8 [h, w, 3]), `boxes` [n, 4], `labels`
    [n], `masks` [n, h, w] (an array or `masks.Masks`), `image_id` and, for two
    canvases, `canvas` into one row of a batch.

  Raises:
    ValueError: a field is out of range.
  """
  make = functools.partial(transform.from_config, config=config)
  padding = _padding(config)
  resize = make(Rescale, {'scales': 'train_scales'}, canvases=padding.canvases)
  flip = make(image.RandomFlip, {'probability': 'flip'})
  if config.crop_scales:
    crop = (
      make(Rescale, {'scales': 'crop_scales'}),
      make(RandomCropOfRange, {'sides': 'crop_range'}),
      resize,
    )
    steps = (flip, OneOf((resize, transform.Compose(crop))))
  else:
    steps = (resize, flip)
  objects = make(
    ToRows, {'max_objects': 'max_objects', 'mask_size': 'mask_size'}
  )
  return transform.Compose(
    (transform.Decode(), Prepare(), *steps, padding, objects)
  )


def eval_transform(config: ml_collections.ConfigDict) -> transform.Compose:
  """The evaluation transform of `config.data`; takes what training takes.

  Source: the test pipelines of mmdetection with one scale and no flip.

  Raises:
    ValueError: a field is out of range.
  """
  padding = _padding(config)
  resize = transform.from_config(
    lambda scales: Rescale((scales,), padding.canvases),
    {'scales': 'eval_scale'},
    config,
  )
  return transform.Compose(
    (transform.Decode(), Prepare(), resize, padding, Measure())
  )


def _padding(config: ml_collections.ConfigDict) -> pad.Pad:
  padding = transform.from_config(pad.Pad, {'canvases': 'canvases'}, config)
  if len(padding.canvases) > 2:
    raise transform.FieldError(
      'data.canvases',
      padding.canvases,
      'is neither one (height, width) nor two, for images wider than high and '
      'for the others.',
    )
  return padding


@dataclasses.dataclass(frozen=True)
class Prepare:
  """Notes `original_size`, int32 [2], and lets masks be drawn last."""

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    size = example['image'].shape[:2]
    masks = example['masks']
    if isinstance(masks, np.ndarray):
      masks = masks_lib.Masks(masks, *size)
    return {
      **example,
      'masks': masks,
      'original_size': np.array(size, np.int32),
    }


@dataclasses.dataclass(frozen=True)
class Rescale(geometric.Geometric):
  """Resizes within one of the scales, drawn at random if there are several.

  Source: `Resize` of mmdetection with `multiscale_mode='value'`.

  Attributes:
    scales: the scales.
    canvases: height and width of the canvases by their number, `canvas` of the
      example; where the image would not fit its own, it is resized to fit. ():
      nothing limits it but the scale.
  """

  scales: _Scales
  canvases: _Scales = ()

  def __post_init__(self):
    if not self.scales:
      raise transform.FieldError('scales', self.scales, 'is empty; give one.')
    for scale in self.scales:
      rescale.check_scale('scales', scale)

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    number = rng.integers(len(self.scales)) if len(self.scales) > 1 else 0
    old = example['image'].shape[:2]
    size = rescale.rescaled_size(old, self.scales[number])
    if self.canvases:
      canvas = self.canvases[example['canvas'] if len(self.canvases) > 1 else 0]
      if size[0] > canvas[0] or size[1] > canvas[1]:
        factor = min(canvas[0] / old[0], canvas[1] / old[1])
        height, width = (max(1, int(side * factor + 0.5)) for side in old)
        size = height, width
    return geometric.Placement((0, 0, *old), size)

  def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return rescale.resize(image, size)


@dataclasses.dataclass(frozen=True)
class RandomCropOfRange(geometric.Geometric):
  """Crops a rectangle whose height and width are drawn from a range.

  Both are drawn by themselves, uniformly; of a side below the range all is
  kept. Source: `RandomCrop` of mmdetection with `crop_type='absolute_range'`
  and `allow_negative_crop`.

  Attributes:
    sides: least and greatest height and width, in pixels, both possible.
  """

  sides: tuple[int, int]

  def __post_init__(self):
    transform.check_pair('sides', self.sides, '(least, greatest)')
    transform.check_range('sides', self.sides)

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    size = example['image'].shape[:2]
    least, greatest = self.sides
    cut = [
      int(rng.integers(min(side, least), min(side, greatest) + 1))
      for side in size
    ]
    start = [
      int(rng.integers(0, side - part + 1))
      for side, part in zip(size, cut, strict=True)
    ]
    return geometric.Placement((*start, *cut), tuple(cut))


@dataclasses.dataclass(frozen=True)
class OneOf:
  """Applies one of several transforms, drawn at random."""

  transforms: tuple[transform.Transform, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return self.transforms[rng.integers(len(self.transforms))](example, rng)


@dataclasses.dataclass(frozen=True)
class ToRows:
  """Puts the objects of a padded image into a fixed number of rows.

  Objects without area are left out; of more than `max_objects` the largest
  boxes are kept, in their order.

  Attributes:
    max_objects: number of rows.
    mask_size: height and width of the masks; 0: they are left out.

  Raises:
    ValueError: a field is out of range.
  """

  max_objects: int
  mask_size: int

  def __post_init__(self):
    transform.check_count('max_objects', self.max_objects, 'objects')
    if self.mask_size < 0 or self.mask_size % 8:
      raise transform.FieldError(
        'mask_size',
        self.mask_size,
        'is neither 0 nor a multiple of 8: masks are sent to the device in '
        'bytes of 8 pixels.',
      )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    rows = {
      'image': example['image'],
      'size': example['size'],
      'image_id': np.int32(example['image_id']),
    }
    kept = self._choose(example['boxes'])
    rows['boxes'] = self._fill(example['boxes'][kept])
    rows['labels'] = self._fill(example['labels'][kept])
    rows['valid'] = self._fill(np.ones(len(kept), bool))
    if self.mask_size:
      bits, regions = example['masks'][kept].pack(self.mask_size)
      rows['masks'] = self._fill(bits)
      rows['mask_regions'] = self._fill(regions)
    return rows

  def _choose(self, boxes: np.ndarray) -> np.ndarray:
    """The objects that get a row, int [n], ascending."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept = np.flatnonzero(areas > 0)
    if len(kept) > self.max_objects:
      _say_dropped(self.max_objects)
      largest = np.argsort(-areas[kept], kind='stable')[: self.max_objects]
      kept = np.sort(kept[largest])
    return kept

  def _fill(self, array: np.ndarray) -> np.ndarray:
    filled = np.zeros((self.max_objects, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled


@dataclasses.dataclass(frozen=True)
class Measure:
  """Leaves of an example what is evaluated, and adds `scale`, float32 [2]."""

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    kept = ('image', 'size', 'image_id', 'original_size')
    rows = {key: example[key] for key in kept}
    width, height = example['size'][::-1] / example['original_size'][::-1]
    return {
      **rows,
      'image_id': np.int32(example['image_id']),
      'scale': np.array((width, height), np.float32),
    }


@functools.lru_cache
def _say_dropped(max_objects: int) -> None:
  """Logs once in a process that objects are left out."""
  logger.warning(
    'Images with more than data.max_objects=%d objects train on the largest '
    'ones only.',
    max_objects,
  )
