"""Transforms that move pixels, and with them all that lies on the image.

They know `image` [h, w, 3], `label_map` [h, w], `masks` [n, h, w] and `boxes`
[n, 4]. The corners of a box, x1 y1 x2 y2 in pixels, are points of the plane:
a box around the pixel in row 0 and column 0 is (0, 0, 1, 1).
"""

import abc
import dataclasses

import cv2
import numpy as np

from acmix_jax.data.transforms import transform
from acmix_jax.data.transforms.transform import Example


@dataclasses.dataclass(frozen=True)
class Placement:
  """Which part of an image becomes the result: a box, resized, then mirrored.

  Attributes:
    box: top, left, height and width of the part, in pixels.
    size: height and width of the result, in pixels.
    mirrored: whether left and right are exchanged.
  """

  box: tuple[int, int, int, int]
  size: tuple[int, int]
  mirrored: bool = False

  @property
  def resizes(self) -> bool:
    """Whether the box and the result differ in size."""
    return self.size != self.box[2:]

  def nearest(self, array: np.ndarray) -> np.ndarray:
    """Moves labels or masks [..., h, w], without blending them.

    By OpenCV's rule pixel i of n is taken from pixel floor(i * m / n) of m.
    """
    top, left, height, width = self.box
    array = array[..., top : top + height, left : left + width]
    if self.resizes:
      # Columns first: the rows are then copied whole.
      array = array.take(_nearest(width, self.size[1]), axis=-1)
      array = array.take(_nearest(height, self.size[0]), axis=-2)
    return array[..., ::-1] if self.mirrored else array

  def move_boxes(self, boxes: np.ndarray) -> np.ndarray:
    """Moves boxes [n, 4] and clips them to the result; float32.

    A box of which nothing is left stays in its row, with an area of 0.
    """
    (top, left, height, width), (new_height, new_width) = self.box, self.size
    shift = np.array((left, top) * 2, np.float32)
    scale = np.array((new_width / width, new_height / height) * 2, np.float32)
    boxes = (boxes.astype(np.float32) - shift) * scale
    if self.mirrored:
      boxes[:, [0, 2]] = new_width - boxes[:, [2, 0]]
    return np.clip(boxes, 0, np.array((new_width, new_height) * 2, np.float32))


def _nearest(old: int, new: int) -> np.ndarray:
  # OpenCV's own arithmetic, which differs from old / new in the last bit.
  indices = np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64)
  return np.minimum(indices, old - 1)


class Geometric(abc.ABC):
  """A transform that draws a placement once and moves every array by it."""

  @abc.abstractmethod
  def place(self, example: Example, rng: np.random.Generator) -> Placement:
    """Draws the placement for an example."""

  def resize(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image to (height, width), for placements that do."""
    raise NotImplementedError

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Moves what the example holds.

    Raises:
      ValueError: it holds an array of other name, which would be left behind.
    """
    placement = self.place(example, rng)
    moves = {
      'image': lambda image: self._move_image(image, placement),
      'label_map': placement.nearest,
      'masks': placement.nearest,
      'boxes': placement.move_boxes,
    }
    transform.check_arrays(self, example, moves)
    moved = {key: moves[key](example[key]) for key in moves if key in example}
    return {**example, **moved}

  def _move_image(self, image: np.ndarray, placement: Placement) -> np.ndarray:
    top, left, height, width = placement.box
    image = image[top : top + height, left : left + width]
    if placement.resizes:
      image = self.resize(image, placement.size)
    return cv2.flip(image, 1) if placement.mirrored else image
