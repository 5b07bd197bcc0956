"""Crops, resizes and flips.

Training crops are resized by OpenCV, evaluation images by Pillow. Pillow's
resize is antialiased and is what the published results were evaluated with, so
evaluation must match it exactly. In training it would cost a third of the
throughput; OpenCV's is not antialiased, which a crop less than twice its
output size hardly shows, and above that we average over areas.
"""

import dataclasses
import math

import cv2
import numpy as np
from PIL import Image

from acmix_jax.data.transforms import geometric, transform
from acmix_jax.data.transforms.transform import Example

_CV2_FILTERS = {'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}
_PILLOW_FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}
_CROP_ATTEMPTS = 10
# Longer side / shorter side up to which `ResizeShort` keeps all of an image. Of
# 20000 x 1 pixels it would make 5 million x 256, 12 GB of what is cropped next.
_LONGEST = 32


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(geometric.Geometric):
  """Crops a box of random area and aspect ratio and resizes it to a square.

  Source: "Going Deeper with Convolutions", section 6; the distribution of the
  boxes is that of torchvision's transform of the same name. The resize is
  OpenCV's instead of Pillow's, see the head of this file; its bicubic kernel
  has a = -0.75 (Pillow -0.5).

  Attributes:
    size: height and width of the result, in pixels.
    scale: least and greatest area of the box, as a share of the image.
    ratio: least and greatest width / height of the box.
    interpolation: 'bilinear' or 'bicubic'.
  """

  size: int
  scale: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  interpolation: str = 'bilinear'

  def __post_init__(self):
    transform.check_count('size', self.size)
    transform.check_range('scale', self.scale, most=1)
    transform.check_range('ratio', self.ratio)
    transform.check_choice('interpolation', self.interpolation, _CV2_FILTERS)

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    box = self.sample_box(*example['image'].shape[:2], rng)
    return geometric.Placement(box, (self.size, self.size))

  def sample_box(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    """Draws a box in an image of the given size: top, left, height, width."""
    log_ratio = np.log(self.ratio)
    for _ in range(_CROP_ATTEMPTS):
      area = height * width * rng.uniform(*self.scale)
      ratio = math.exp(rng.uniform(*log_ratio))
      box_height = round(math.sqrt(area / ratio))
      box_width = round(math.sqrt(area * ratio))
      if 0 < box_height <= height and 0 < box_width <= width:
        top = rng.integers(height - box_height + 1)
        left = rng.integers(width - box_width + 1)
        return int(top), int(left), box_height, box_width
    # The central box of the nearest ratio that is allowed.
    ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
    box_height = min(height, max(1, round(width / ratio)))
    box_width = min(width, max(1, round(height * ratio)))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width

  def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    filter_ = _CV2_FILTERS[self.interpolation]
    if image.shape[0] * image.shape[1] >= 4 * height * width:
      filter_ = cv2.INTER_AREA
    return cv2.resize(image, (width, height), interpolation=filter_)


@dataclasses.dataclass(frozen=True)
class RandomFlip(geometric.Geometric):
  """Mirrors left and right with the given probability."""

  probability: float = 0.5

  def __post_init__(self):
    transform.check_probability('probability', self.probability)

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    size = example['image'].shape[:2]
    mirrored = rng.random() < self.probability
    return geometric.Placement((0, 0, *size), size, mirrored)


@dataclasses.dataclass(frozen=True)
class ResizeShort(geometric.Geometric):
  """Resizes the shorter side to `size`, antialiased, keeping the aspect ratio.

  The same pixels as torchvision's `Resize(size)` of a PIL image: the longer
  side is `int(size * longer / shorter)`. Unlike there the ends of an image more
  than 32 times as long as wide are cut off first, so that its middle is that
  long.
  """

  size: int
  interpolation: str = 'bilinear'

  def __post_init__(self):
    transform.check_count('size', self.size)
    transform.check_choice('interpolation', self.interpolation, _PILLOW_FILTERS)

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    del rng
    height, width = example['image'].shape[:2]
    shorter = min(height, width)
    top, left = _overhang(height, shorter), _overhang(width, shorter)
    height, width = height - 2 * top, width - 2 * left
    size = (self.size * height // shorter, self.size * width // shorter)
    return geometric.Placement((top, left, height, width), size)

  def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    filter_ = _PILLOW_FILTERS[self.interpolation]
    return np.array(Image.fromarray(image).resize(size[::-1], filter_))


@dataclasses.dataclass(frozen=True)
class CenterCrop(geometric.Geometric):
  """Cuts out the central square, placed as torchvision's `CenterCrop`.

  Raises:
    ValueError: the image is smaller than `size` (torchvision pads it).
  """

  size: int

  def __post_init__(self):
    transform.check_count('size', self.size)

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    del rng
    height, width = example['image'].shape[:2]
    if min(height, width) < self.size:
      raise ValueError(
        f'CenterCrop: the image of {height}x{width} is smaller than '
        f'size={self.size}; resize its shorter side to {self.size} or more.'
      )
    top = round((height - self.size) / 2)
    left = round((width - self.size) / 2)
    size = (self.size, self.size)
    return geometric.Placement((top, left, *size), size)


def _overhang(side: int, shorter: int) -> int:
  """Pixels to cut from both ends of a side, so that its centre stays."""
  return max(0, -(-(side - _LONGEST * shorter) // 2))
