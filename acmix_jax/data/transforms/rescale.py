"""Resizes that keep the aspect ratio, within a longer and a shorter side."""

import dataclasses

import cv2
import numpy as np

from acmix_jax.data.transforms import geometric, transform
from acmix_jax.data.transforms.transform import Example


def rescaled_size(
  size: tuple[int, int], scale: tuple[int, int]
) -> tuple[int, int]:
  """The largest size of the same aspect ratio that a scale leaves room for.

  side * min(greater of scale / longer side, lesser of scale / shorter side),
  rounded half up. Source: `rescale_size` of mmcv; unlike there no side is less
  than a pixel.

  Args:
    size: height and width, in pixels.
    scale: bounds of the longer and of the shorter side, in any order.
  """
  factor = min(max(scale) / max(size), min(scale) / min(size))
  height, width = (max(1, int(side * factor + 0.5)) for side in size)
  return height, width


def check_scale(
  field: str, scale: tuple[int, int], least_ratio: float = 1
) -> None:
  """Raises a FieldError where a scale leaves less than a pixel."""
  transform.check_pair(field, scale, '(longer side, shorter side)')
  if int(min(scale) * least_ratio) < 1:
    raise transform.FieldError(
      field, scale, f'leaves no pixel at the least ratio of {least_ratio}.'
    )


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes uint8 [h, w, 3] as OpenCV does: bilinear, not antialiased."""
  return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


@dataclasses.dataclass(frozen=True)
class RandomRescale(geometric.Geometric):
  """Resizes to `scale` times a random ratio, keeping the aspect ratio.

  Source: `Resize` of mmsegmentation 0.x with `ratio_range`, to the last bit.

  Attributes:
    scale: longer and shorter side, in pixels, that bound the result at ratio 1;
      times the ratio they are cut off to whole pixels.
    ratio: least and greatest ratio.
  """

  scale: tuple[int, int]
  ratio: tuple[float, float] = (0.5, 2.0)

  def __post_init__(self):
    transform.check_range('ratio', self.ratio)
    check_scale('scale', self.scale, self.ratio[0])

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    size = example['image'].shape[:2]
    ratio = rng.uniform(*self.ratio)
    long, short = (int(side * ratio) for side in self.scale)
    return geometric.Placement(
      (0, 0, *size), rescaled_size(size, (long, short))
    )

  def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize(image, size)
