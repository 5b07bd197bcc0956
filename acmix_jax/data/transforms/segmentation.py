"""The transforms with which segmenters are trained and evaluated.

Fields of `config.data` that are read here:

  image_scale: longer and shorter side, in pixels, within which an image is
    resized, keeping its aspect ratio, e.g. (2048, 512).
  ratio_range: least and greatest random factor of the scale in training.
  crop_size: height and width of the training crops, in pixels.
  max_category_share: share of a crop's labelled pixels that each class must
    stay below, within ten draws; 1: crops are not looked at.
  flip: probability that a training image is mirrored.
  photometric: whether colours are distorted in training.
  eval_ratios: factors of the scale at which an image is evaluated; one for
    single-scale evaluation.
  eval_multiple: number that divides the sides of evaluated images. They are
    resized again to reach the next multiple, as PVT does (32). 1: never.

Label maps are uint8 with 255 where a pixel does not count. The images are not
normalised: that is left to the device, which also sets pixels beyond `size`
to 0 once it is done, since the sources pad after normalisation.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence

import ml_collections
import numpy as np

from acmix_jax.data import decode
from acmix_jax.data.label_maps import IGNORED
from acmix_jax.data.transforms import (
  crop,
  image,
  pad,
  photometric,
  rescale,
  transform,
)
from acmix_jax.data.transforms.transform import Example


def train_transform(config: ml_collections.ConfigDict) -> transform.Compose:
  """The training transform of `config.data`.

  Source: the training pipeline of PVT and Swin in mmsegmentation 0.x, which
  this one follows draw for draw and bit for bit. Unlike there a rotation noted
  in an image file (EXIF) is not applied, since the label map knows of none.

  Returns:
    What turns `image` (a file, or uint8 [h, w, 3]) and `label_map`, uint8
    [h, w], into both at `crop_size`, and `size`, int32 [2], the height and
    width of the image on them; beyond it the labels are 255. All else that an
    example holds is left out.

  Raises:
    ValueError: a field is out of range.
  """
  make = functools.partial(transform.from_config, config=config)
  steps = [
    transform.Keep(('image', 'label_map')),
    transform.Decode(),
    make(
      rescale.RandomRescale, {'scale': 'image_scale', 'ratio': 'ratio_range'}
    ),
    make(
      crop.RandomCrop,
      {'size': 'crop_size', 'max_category_share': 'max_category_share'},
      ignored_label=IGNORED,
    ),
    make(image.RandomFlip, {'probability': 'flip'}),
  ]
  if config.photometric:
    steps.append(photometric.PhotometricDistortion())
  canvas = (config.crop_size, config.crop_size)
  steps.append(pad.Pad((canvas,), ignored_label=IGNORED))
  return transform.Compose(tuple(steps))


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Sizes that the examples of an evaluation batch share.

  Attributes:
    inputs: height and width of the images, in the order of `eval_ratios`: the
      whole of them, nothing is padded.
    label: height and width to which the label maps are padded.
  """

  inputs: tuple[tuple[int, int], ...]
  label: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class EvalScales:
  """The sizes at which an image is evaluated.

  Source: the test pipeline of mmsegmentation (`MultiScaleFlipAug`, `Resize`)
  and `AlignResize` of PVT.

  Attributes:
    scale: longer and shorter side that bound an image at ratio 1.
    ratios: factors of the scale; the results are cut off to whole pixels.
    multiple: number that divides all sides of the result.

  Raises:
    ValueError: a field is out of range.
  """

  scale: tuple[int, int]
  ratios: tuple[float, ...] = (1.0,)
  multiple: int = 1

  def __post_init__(self):
    if not self.ratios or not all(0 < x < math.inf for x in self.ratios):
      raise transform.FieldError(
        'ratios',
        self.ratios,
        'is not one or more factors above 0; (1.0,) is a single scale.',
      )
    rescale.check_scale('scale', self.scale, min(self.ratios))
    transform.check_count('multiple', self.multiple)

  def steps(
    self, size: tuple[int, int]
  ) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each ratio the size after the first resize, and the aligned one."""
    result = []
    for ratio in self.ratios:
      long, short = (int(side * ratio) for side in self.scale)
      first = rescale.rescaled_size(size, (long, short))
      height, width = (-(-side // self.multiple) for side in first)
      result.append((first, (height * self.multiple, width * self.multiple)))
    return result

  def inputs(self, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes of the images that the network sees."""
    return tuple(aligned for _, aligned in self.steps(size))


def image_keys(ratios: Sequence[float]) -> tuple[str, ...]:
  """Keys of the images in an evaluation batch: 'image', 'image_1', ..."""
  return ('image', *(f'image_{i}' for i in range(1, len(ratios))))


def eval_canvases(
  config: ml_collections.ConfigDict, sizes: np.ndarray
) -> tuple[np.ndarray, tuple[Canvas, ...]]:
  """The canvases of images of the given sizes.

  Images share a canvas if all their input sizes are the same, and if their own
  sizes do not differ by more than about a quarter, so that padding their label
  maps wastes little. The network is compiled once for each.

  Args:
    config: `config.data`.
    sizes: heights and widths as they are stored, int [n, 2].

  Returns:
    The number of each image's canvas, int [n], and the canvases.
  """
  scales = _eval_scales(config)
  members = collections.defaultdict(list)
  for index, (height, width) in enumerate(np.asarray(sizes).tolist()):
    key = scales.inputs((height, width)), _coarse(height), _coarse(width)
    members[key].append(index)
  numbers, canvases = np.zeros(len(sizes), np.int64), []
  for number, key in enumerate(sorted(members)):
    height, width = np.asarray(sizes)[members[key]].max(axis=0).tolist()
    canvases.append(Canvas(key[0], (height, width)))
    numbers[members[key]] = number
  return numbers, tuple(canvases)


def _coarse(side: int) -> int:
  """A side rounded up to its three leading bits, at most 25 % more."""
  step = 1 << max(0, (side - 1).bit_length() - 3)
  return -(-side // step) * step


def _eval_scales(config: ml_collections.ConfigDict) -> EvalScales:
  return transform.from_config(
    EvalScales,
    {
      'scale': 'image_scale',
      'ratios': 'eval_ratios',
      'multiple': 'eval_multiple',
    },
    config,
  )


@dataclasses.dataclass(frozen=True)
class ToCanvas:
  """Resizes an image to the inputs of its canvas and pads its label map.

  The number of the canvas, `canvas` (not needed for one), leaves the example;
  `size`, int32 [2], comes in: height and width of the label map.

  Raises:
    decode.DecodeError: the image does not belong on the canvas.
  """

  scales: EvalScales
  canvases: tuple[Canvas, ...]

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    del rng
    transform.check_arrays(self, example, ('image', 'label_map'))
    number = example['canvas'] if len(self.canvases) > 1 else 0
    canvas = self.canvases[number]
    height, width = size = example['image'].shape[:2]
    if (
      self.scales.inputs(size) != canvas.inputs
      or height > canvas.label[0]
      or width > canvas.label[1]
    ):
      raise decode.DecodeError(
        f'the image is {height} x {width} pixels (height x width), other than '
        'its file said when the data set was opened'
      )
    label_map = np.full(canvas.label, IGNORED, np.uint8)
    label_map[:height, :width] = example['label_map']
    result = {key: value for key, value in example.items() if key != 'canvas'}
    steps = self.scales.steps(size)
    for key, (first, aligned) in zip(
      image_keys(self.scales.ratios), steps, strict=True
    ):
      # Twice, through whole levels, because the source does.
      resized = rescale.resize(example['image'], first)
      result[key] = rescale.resize(resized, aligned)
    return result | {'label_map': label_map, 'size': np.array(size, np.int32)}


def eval_transform(
  config: ml_collections.ConfigDict, canvases: Sequence[Canvas]
) -> transform.Compose:
  """The evaluation transform of `config.data` on the given canvases.

  Args:
    config: `config.data`.
    canvases: the second result of `eval_canvases`. The source must give each
      example the number of its own, see `sources.OnCanvases`.

  Returns:
    What turns `image` and `label_map` into the images at the input sizes (see
    `image_keys`), the label map at its own size, padded with 255 to that of
    the canvas, and `size`, int32 [2], that size before padding.

  Raises:
    ValueError: a field is out of range.
  """
  scales = _eval_scales(config)
  return transform.Compose(
    (
      transform.Keep(('image', 'label_map', 'canvas')),
      transform.Decode(),
      ToCanvas(scales, tuple(canvases)),
    )
  )
