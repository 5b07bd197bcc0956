"""Handwritten digits on photographs: dense labels that need no download."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from acmix_jax.data.sources import source, splits

SIZE = (64, 96)  # height and width of a scene, in pixels

_LENGTHS = {'train': 10_000, 'validation': 200}
# Objects of a scene that are tried, inclusive.
_OBJECTS = (1, 3)
# Side of the square of 8 x 8 levels that a digit is drawn from, in pixels.
_SIDES = (30.0, 42.0)
_DEGREES = 8.0  # greatest rotation
# Level above which a pixel belongs to a digit, 1 being its darkest ink.
_INK = 0.4
# Share of an object that must stay visible for another one to be put on it.
_VISIBLE = 0.8
_ATTEMPTS = 5  # places tried for an object before it is left out
# Least and greatest red, green and blue of an object: blue to magenta, of which
# the photographs have little.
_COLORS = ((40, 255), (0, 90), (170, 255))
# Share of the photographs' width that training scenes show; validation scenes
# show the rest.
_TRAIN_WIDTH = 0.7


class _Glyph(NamedTuple):
  """A digit as it is drawn.

  Attributes:
    mask: bool [h, w], tight around the pixels of the digit.
    opacity: float32 [h, w], 0.5 to 1 where the mask is set: the share of the
      pixel that the digit covers.
  """

  mask: np.ndarray
  opacity: np.ndarray


class Scenes(source.LabelMaps):
  """Photographs with one to three handwritten digits on them.

  The digits and the photographs are those of scikit-learn. Digits are enlarged
  with smooth outlines, turned by up to 8 degrees and put on a crop of a
  photograph, each in a colour from blue to magenta; a later one may hide up to
  20 % of an earlier one. A scene is a function of the seed, the split and the
  index. Validation scenes show digits that no training scene does (those that
  `Digits` holds out) and the right parts of the photographs, training scenes
  the left ones.

  The examples have, besides `image`, uint8 [h, w, 3], and `name`:

  - label_map: uint8 [h, w]: 0 for the photograph, 1 + d for the digit d.
  - boxes: float32 [n, 4]: left, top, right, bottom in pixels from the corner
    of the image, right and bottom behind the last pixel.
  - labels: int32 [n]: digits; boxes, labels and masks are in the order in which
    the objects were drawn.
  - masks: bool [n, h, w].

  All are exact: a mask holds the pixels that show the object, its box is tight
  around them, the label map is made of the masks, and a pixel in no mask is
  that of the photograph.

  Attributes:
    class_names: names of the values of the label map; those of the labels of
      boxes are all but the first.
  """

  class_names = (
    'background',
    'zero',
    'one',
    'two',
    'three',
    'four',
    'five',
    'six',
    'seven',
    'eight',
    'nine',
  )
  origin = 'scikit-learn'

  def __init__(self, split: str, seed: int = 0):
    """Reads digits and photographs.

    Raises:
      ValueError: the split is not 'train' or 'validation'.
    """
    splits.check_split(split, 'scenes')
    from sklearn import datasets

    self._split, self._seed = split, seed
    digits = datasets.load_digits()
    indices = splits.split_indices(digits.target, split, every=5)
    levels = digits.images[indices].astype(np.float32)
    self._levels = levels / levels.max(axis=(1, 2), keepdims=True)
    self._labels = digits.target[indices]
    self._photographs = [
      photograph[:, _columns(photograph.shape[1], split)]
      for photograph in datasets.load_sample_images().images
    ]

  @property
  def sizes(self) -> np.ndarray:
    """See `LabelMaps`: all scenes are of one size."""
    return np.full((len(self), 2), SIZE, np.int32)

  def __len__(self) -> int:
    return _LENGTHS[self._split]

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(f'Scene {index} of {len(self)}.')
    number = list(_LENGTHS).index(self._split)
    rng = np.random.default_rng((self._seed, number, index))
    image = self._draw_background(rng)
    # Number of the object that each pixel shows; 0: none.
    owners = np.zeros(SIZE, np.uint8)
    labels, areas = [], []
    for _ in range(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1)):
      digit = rng.integers(len(self._labels))
      glyph = _make_glyph(
        self._levels[digit],
        rng.uniform(*_SIDES),
        math.radians(rng.uniform(-_DEGREES, _DEGREES)),
      )
      region = _find_place(owners, areas, glyph.mask, rng)
      if region is not None:
        labels.append(self._labels[digit])
        areas.append(np.count_nonzero(glyph.mask))
        _paint(image[region], glyph, rng)
        owners[region][glyph.mask] = len(labels)
    masks = owners == np.arange(1, len(labels) + 1)[:, None, None]
    values = np.array([0, *(1 + label for label in labels)], np.uint8)
    return {
      'image': image,
      'label_map': values[owners],
      'boxes': np.array([_box(mask) for mask in masks], np.float32),
      'labels': np.array(labels, np.int32),
      'masks': masks,
      'name': f'scenes/{self._split}/{index}',
    }

  def blank(self, index: int) -> dict[str, Any]:
    """A black image without labels or objects."""
    return super().blank(index) | {
      'boxes': np.zeros((0, 4), np.float32),
      'labels': np.zeros(0, np.int32),
      'masks': np.zeros((0, *SIZE), bool),
    }

  def _draw_background(self, rng):
    """A crop of a photograph, mirrored or not."""
    photograph = self._photographs[rng.integers(len(self._photographs))]
    margins = np.subtract(photograph.shape[:2], SIZE)
    top, left = rng.integers(0, margins, endpoint=True)
    crop = photograph[top : top + SIZE[0], left : left + SIZE[1]]
    return crop[:, :: rng.choice((-1, 1))].copy()


def _columns(width, split):
  """The columns of a photograph that the scenes of a split show."""
  border = round(_TRAIN_WIDTH * width)
  return slice(0, border) if split == 'train' else slice(border, width)


def _make_glyph(levels, side, radians):
  """Enlarges the levels of a digit, [8, 8], to about `side` pixels."""
  cell = side / len(levels)
  cosine, sine = cell * math.cos(radians), cell * math.sin(radians)
  extent = math.ceil(1.5 * side)
  matrix = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
  middle = (len(levels) - 1) / 2
  matrix[:, 2] = (extent - 1) / 2 - matrix[:, :2].sum(axis=1) * middle
  enlarged = cv2.warpAffine(
    levels, matrix, (extent, extent), flags=cv2.INTER_CUBIC
  )
  mask = enlarged >= _INK
  left, top, right, bottom = _box(mask)
  # Near its outline the level falls by about 1 in a cell.
  distance = cell * (enlarged[top:bottom, left:right] - _INK)
  return _Glyph(mask[top:bottom, left:right], np.clip(0.5 + distance, 0.5, 1.0))


def _find_place(owners, areas, mask, rng):
  """Draws a place for an object; None if none leaves the others visible."""
  margins = np.subtract(owners.shape, mask.shape)
  numbers = 1 + len(areas)
  visible = np.bincount(owners.ravel(), minlength=numbers)[1:]
  for _ in range(_ATTEMPTS):
    top, left = rng.integers(0, margins, endpoint=True)
    region = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
    hidden = np.bincount(owners[region][mask], minlength=numbers)[1:]
    if np.all(visible - hidden >= np.multiply(_VISIBLE, areas)):
      return region
  return None


def _paint(canvas, glyph, rng):
  """Draws a digit in a random colour."""
  covered = canvas[glyph.mask]
  color = rng.integers(*np.transpose(_COLORS), endpoint=True)
  opacity = glyph.opacity[glyph.mask][:, None]
  canvas[glyph.mask] = np.round(covered + opacity * (color - covered))


def _box(mask):
  """Left, top, right, bottom of the pixels that are set."""
  columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
  return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
