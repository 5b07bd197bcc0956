"""RandAugment: random strong distortions of one image.

Source: "RandAugment: Practical automated data augmentation with a reduced
search space", in the form in which DeiT, PVT and Swin train: timm 0.3.2's
'rand-m9-mstd0.5-inc1'. Posterising keeps at least one bit here; the source
keeps none from magnitude 10 on, which gives a black image.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from acmix_jax.data.transforms import transform
from acmix_jax.data.transforms.transform import Example

GREATEST_MAGNITUDE = 10

_FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}


def _affine(image, coefficients, warp):
  """Takes (ax + by + c, dx + ey + f) of the image to (x, y)."""
  return image.transform(
    image.size, Image.Transform.AFFINE, coefficients, **warp
  )


def _shear_x(image, slope, warp):
  return _affine(image, (1, slope, 0, 0, 1, 0), warp)


def _shear_y(image, slope, warp):
  return _affine(image, (1, 0, 0, slope, 1, 0), warp)


def _translate_x(image, share, warp):
  return _affine(image, (1, 0, share * image.width, 0, 1, 0), warp)


def _translate_y(image, share, warp):
  return _affine(image, (1, 0, 0, 0, 1, share * image.height), warp)


def _rotate(image, degrees, warp):
  return image.rotate(degrees, **warp)


def _auto_contrast(image, value, warp):
  del value, warp
  return ImageOps.autocontrast(image)


def _equalize(image, value, warp):
  del value, warp
  return ImageOps.equalize(image)


def _invert(image, value, warp):
  del value, warp
  return ImageOps.invert(image)


def _posterize(image, lost_bits, warp):
  """Keeps the upper 4 bits of a channel, less those that are lost."""
  del warp
  return ImageOps.posterize(image, max(1, 4 - int(lost_bits)))


def _solarize(image, depth, warp):
  """Inverts channel values among the `depth` highest."""
  del warp
  return ImageOps.solarize(image, 256 - int(depth))


def _solarize_add(image, addend, warp):
  """Brightens channel values of the darker half."""
  del warp
  values = np.arange(256)
  values = np.where(values < 128, values + int(addend), values)
  return image.point(np.minimum(values, 255).tolist() * 3)


def _enhance(enhancement, image, change, warp):
  """Moves away from (change < 0) or beyond the grey, black or blurred image."""
  del warp
  return enhancement(image).enhance(1 + change)


@dataclasses.dataclass(frozen=True)
class Operation:
  """A distortion whose strength grows with the magnitude.

  Attributes:
    apply: (image, value, options of Pillow's warps) -> image.
    limit: value at `GREATEST_MAGNITUDE`, in proportion below.
    signed: whether half of the values are negated.
  """

  apply: Callable[[Image.Image, float, dict[str, Any]], Image.Image]
  limit: float = 0.0
  signed: bool = False


# All are as likely; the order is of no account.
OPERATIONS = {
  'auto_contrast': Operation(_auto_contrast),
  'equalize': Operation(_equalize),
  'invert': Operation(_invert),
  'rotate': Operation(_rotate, 30.0, signed=True),  # degrees
  'posterize': Operation(_posterize, 4),  # bits lost of four
  'solarize': Operation(_solarize, 256),  # highest channel values inverted
  'solarize_add': Operation(_solarize_add, 110),  # channel values
  'color': Operation(
    functools.partial(_enhance, ImageEnhance.Color), 0.9, signed=True
  ),
  'contrast': Operation(
    functools.partial(_enhance, ImageEnhance.Contrast), 0.9, signed=True
  ),
  'brightness': Operation(
    functools.partial(_enhance, ImageEnhance.Brightness), 0.9, signed=True
  ),
  'sharpness': Operation(
    functools.partial(_enhance, ImageEnhance.Sharpness), 0.9, signed=True
  ),
  'shear_x': Operation(_shear_x, 0.3, signed=True),  # px a row
  'shear_y': Operation(_shear_y, 0.3, signed=True),  # px a column
  'translate_x': Operation(_translate_x, 0.45, signed=True),  # of the width
  'translate_y': Operation(_translate_y, 0.45, signed=True),  # of the height
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Applies a few of `OPERATIONS`, drawn with replacement.

  Attributes:
    num_operations: operations drawn for an image.
    magnitude: mean strength, 0 to 10.
    magnitude_std: standard deviation of the strength, which is clipped to
      0..10.
    probability: probability with which a drawn operation is applied.
    fill: colour of the pixels that a warp brings in.
    interpolation: filter of the warps, 'bilinear' or 'bicubic'.

  Raises:
    ValueError: a field is out of range; or, when called, the example holds
      boxes, masks or a label map, which would not follow the image.
  """

  num_operations: int = 2
  magnitude: float = 9.0
  magnitude_std: float = 0.5
  probability: float = 0.5
  fill: tuple[int, int, int] = (124, 116, 104)
  interpolation: str = 'bicubic'

  def __post_init__(self):
    transform.check_count('num_operations', self.num_operations, 'operations')
    if not 0 <= self.magnitude <= GREATEST_MAGNITUDE:
      raise transform.FieldError(
        'magnitude', self.magnitude, f'is not within 0..{GREATEST_MAGNITUDE}.'
      )
    if not 0 <= self.magnitude_std < math.inf:
      raise transform.FieldError(
        'magnitude_std',
        self.magnitude_std,
        'is not a finite number of at least 0.',
      )
    transform.check_probability('probability', self.probability)
    transform.check_choice('interpolation', self.interpolation, _FILTERS)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    transform.check_arrays(self, example, ('image',))
    operations = rng.choice(list(OPERATIONS.values()), self.num_operations)
    applied = [op for op in operations if rng.random() < self.probability]
    if not applied:
      return example
    warp = dict(resample=_FILTERS[self.interpolation], fillcolor=self.fill)
    image = Image.fromarray(example['image'])
    for operation in applied:
      image = operation.apply(image, self._sample_value(operation, rng), warp)
    return {**example, 'image': np.array(image)}

  def _sample_value(
    self, operation: Operation, rng: np.random.Generator
  ) -> float:
    magnitude = rng.normal(self.magnitude, self.magnitude_std)
    magnitude = min(max(magnitude, 0), GREATEST_MAGNITUDE)
    sign = rng.choice((-1, 1)) if operation.signed else 1
    return sign * operation.limit * magnitude / GREATEST_MAGNITUDE
