"""Random changes of brightness, contrast, saturation and hue.

Every change maps each level of a channel to a level: a table of 256 does it.
"""

import dataclasses

import cv2
import numpy as np

from acmix_jax.data.transforms.transform import Example

_LEVELS = np.arange(256, dtype=np.uint8)
# OpenCV's hue has 8 bits: half degrees.
_HUES = 180


def adjust_brightness(image: np.ndarray, shift: float) -> np.ndarray:
  """Adds a shift to the levels of uint8 RGB [h, w, 3]."""
  return cv2.LUT(image, _linear(shift=shift))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Multiplies the levels of uint8 RGB [h, w, 3]."""
  return cv2.LUT(image, _linear(factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """Multiplies the saturation of uint8 RGB [h, w, 3]."""
  return _in_hsv(image, _LEVELS, _linear(factor))


def adjust_hue(image: np.ndarray, shift: int) -> np.ndarray:
  """Turns the hue of uint8 RGB [h, w, 3] by 2 * shift degrees."""
  hues = ((_LEVELS.astype(int) + shift) % _HUES).astype(np.uint8)
  return _in_hsv(image, hues, _LEVELS)


def _linear(factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
  """The table of level * factor + shift, clipped and cut off, uint8 [256]."""
  # In float32, as the source computes it.
  levels = _LEVELS.astype(np.float32) * np.float32(factor) + np.float32(shift)
  return np.clip(levels, 0, 255).astype(np.uint8)


def _in_hsv(
  image: np.ndarray, hues: np.ndarray, saturations: np.ndarray
) -> np.ndarray:
  """Applies tables to hue and saturation; 8 bits of HSV lose some colour."""
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
  table = np.stack((hues, saturations, _LEVELS), axis=-1)[None]
  return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB)


@dataclasses.dataclass(frozen=True)
class PhotometricDistortion:
  """Changes brightness, contrast, saturation and hue, each half of the time.

  Contrast comes before or after saturation and hue, with equal chances.
  Source: `PhotoMetricDistortion` of mmsegmentation, to the last bit; there and
  here the hue never turns by the greatest shift itself, only by its negative.

  Attributes:
    brightness: greatest shift of the levels.
    contrast: least and greatest factor of the levels.
    saturation: least and greatest factor of the saturation.
    hue: greatest shift of the hue, in units of 2 degrees.
  """

  brightness: float = 32.0
  contrast: tuple[float, float] = (0.5, 1.5)
  saturation: tuple[float, float] = (0.5, 1.5)
  hue: int = 18

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    image = example['image']
    if rng.integers(2):
      shift = rng.uniform(-self.brightness, self.brightness)
      image = adjust_brightness(image, shift)
    contrast_first = rng.integers(2)
    if contrast_first and rng.integers(2):
      image = adjust_contrast(image, rng.uniform(*self.contrast))
    if rng.integers(2):
      image = adjust_saturation(image, rng.uniform(*self.saturation))
    if rng.integers(2):
      image = adjust_hue(image, int(rng.integers(-self.hue, self.hue)))
    if not contrast_first and rng.integers(2):
      image = adjust_contrast(image, rng.uniform(*self.contrast))
    return {**example, 'image': image}
