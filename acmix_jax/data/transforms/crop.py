"""Random crops that look at the labels inside."""

import dataclasses

import cv2
import numpy as np

from acmix_jax.data.transforms import geometric, transform
from acmix_jax.data.transforms.transform import Example

_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class RandomCrop(geometric.Geometric):
  """Cuts out a square at random; of a smaller image all there is.

  A square in which one class has `max_category_share` of the labelled pixels
  or more, or which has no second class, is drawn anew, up to ten times; the
  last draw is taken as it is. Source: `RandomCrop` of mmsegmentation.

  Attributes:
    size: height and width of the square, in pixels.
    max_category_share: share of the labelled pixels that every class must stay
      below; 1: any square will do, and no label map is needed.
    ignored_label: label of pixels that do not count, in uint8 label maps.
  """

  size: int
  max_category_share: float = 1.0
  ignored_label: int = 255

  def __post_init__(self):
    transform.check_count('size', self.size)
    if not 0 < self.max_category_share <= 1:
      raise transform.FieldError(
        'max_category_share',
        self.max_category_share,
        'is not above 0 and at most 1.',
      )

  def place(
    self, example: Example, rng: np.random.Generator
  ) -> geometric.Placement:
    height, width = example['image'].shape[:2]
    box = self._sample_box(height, width, rng)
    if self.max_category_share < 1:
      for _ in range(_ATTEMPTS):
        if self._is_mixed(example['label_map'], box):
          break
        box = self._sample_box(height, width, rng)
    return geometric.Placement(box, box[2:])

  def _sample_box(
    self, height: int, width: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    top = rng.integers(max(height - self.size, 0) + 1)
    left = rng.integers(max(width - self.size, 0) + 1)
    return int(top), int(left), min(height, self.size), min(width, self.size)

  def _is_mixed(
    self, label_map: np.ndarray, box: tuple[int, int, int, int]
  ) -> bool:
    top, left, height, width = box
    part = label_map[top : top + height, left : left + width]
    # Three times as fast as np.bincount.
    counts = cv2.calcHist([part], [0], None, [256], [0, 256])
    counts = counts.ravel().astype(np.int64)
    counts[self.ignored_label] = 0
    if np.count_nonzero(counts) < 2:
      return False
    return counts.max() / counts.sum() < self.max_category_share
