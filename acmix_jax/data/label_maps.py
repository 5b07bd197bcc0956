"""Label files to the class of each pixel, whatever numbers the files use."""

import dataclasses
import functools
import io
from collections.abc import Collection

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from acmix_jax.data import decode

# Label of pixels that do not count, in every label map of this package.
IGNORED = 255

_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_GREY = 0
_COLORS = (2, 4, 6)  # RGB, grey with alpha, RGB with alpha.


class LabelError(ValueError):
  """A label file of a form that does not say which class a pixel has.

  Unlike damage it is not passed over: a person has to decide what is meant.
  """


def read(encoded: bytes) -> np.ndarray:
  """The numbers stored in a PNG file, as they are.

  Of a palette these are the indices. Grey of 1 to 8 bits is read as it is
  stored; of 16 bits too, where no number is above 255. Colour is refused, also
  where its channels are equal: a picture of one colour is no number of a class.

  Args:
    encoded: the content of the file.

  Returns:
    uint8 [h, w].

  Raises:
    decode.DecodeError: the file is empty, damaged or too large.
    LabelError: it is a JPEG file, holds colours or transparency, or numbers
      above 255.
  """
  if encoded.startswith(_JPEG):
    raise LabelError(
      'it is a JPEG file, which does not keep the numbers of the classes; '
      'store them as PNG, from the originals'
    )
  if encoded and not encoded.startswith(_PNG):
    raise decode.DecodeError('no PNG file, as label maps have to be')
  depth, kind = encoded[24:26] if len(encoded) >= 26 else (0, 0)
  if kind in _COLORS:
    raise LabelError(
      'it holds colours or transparency, not numbers of classes; store one '
      'channel of 8 bits (grey or palette) with 0 for the first class, 1 for '
      "the second and so on. Of equal channels Pillow's convert('L') makes one"
    )
  stored = _decode(encoded)
  if kind == _GREY and depth in (2, 4):
    # Pillow stretches these to 0..255.
    stored = stored // (255 // (2**depth - 1))
  elif kind == _GREY and depth == 16 and stored.max() > 255:
    raise LabelError(
      f'its 16 bits hold numbers up to {stored.max()}; classes are numbered '
      '0 to 254. Numbers of instances or of parts (class * 1000 + instance) '
      'must be turned into numbers of classes'
    )
  return stored.astype(np.uint8, copy=False)


def _decode(encoded: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      decode.check_pixels(*image.size)
      return np.asarray(image)
  except decode.DecodeError:
    raise
  except UnidentifiedImageError as error:
    reason = 'no image of a known format' if encoded else 'the file is empty'
    raise decode.DecodeError(reason) from error
  # On damaged files Pillow's readers raise errors of nearly every kind.
  except Exception as error:
    raise decode.DecodeError(f'{type(error).__name__}: {error}') from error


@dataclasses.dataclass(frozen=True)
class Convention:
  """Which stored number means which class.

  Attributes:
    num_classes: number of classes, at most 255.
    ignored_label: stored number of pixels that do not count.
    zero_is_ignored: whether 0 does not count either and 1 is the first class.
    fields: whether the other attributes are fields of `config.data` that a
      message may name.

  Raises:
    ValueError: there are no classes, or too many.
  """

  num_classes: int
  ignored_label: int = IGNORED
  zero_is_ignored: bool = False
  fields: bool = True

  def __post_init__(self):
    if not 1 <= self.num_classes <= IGNORED:
      raise ValueError(
        f'{self.num_classes} classes cannot be told apart by label maps of 8 '
        f'bits, which hold 1 to {IGNORED}.'
      )

  @property
  def first(self) -> int:
    """Stored number of the first class."""
    return int(self.zero_is_ignored)

  @property
  def last(self) -> int:
    """Stored number of the last class."""
    return self.num_classes - 1 + self.first

  @functools.cached_property
  def table(self) -> np.ndarray:
    """Class of each stored number, or 255, uint8 [256]."""
    table = np.full(256, IGNORED, np.uint8)
    table[self.first : self.last + 1] = np.arange(self.num_classes)
    if 0 <= self.ignored_label < 256:
      table[self.ignored_label] = IGNORED
    return table

  @functools.cached_property
  def known(self) -> np.ndarray:
    """Whether each stored number means something, bool [256]."""
    numbers = np.arange(256)
    return (numbers <= self.last) | (numbers == self.ignored_label)

  def apply(self, stored: np.ndarray) -> np.ndarray:
    """Classes of stored numbers; both uint8 [h, w].

    Raises:
      decode.DecodeError: a number means nothing.
    """
    # Three times as fast as np.bincount.
    counts = cv2.calcHist([stored], [0], None, [256], [0, 256]).ravel()
    unknown = np.flatnonzero((counts > 0) & ~self.known)
    if len(unknown):
      raise decode.DecodeError(self.explain(unknown.tolist()))
    return cv2.LUT(stored, self.table)

  def explain(self, unknown: Collection[int]) -> str:
    """What is wrong with stored numbers that mean nothing, and what to do."""
    shown = ', '.join(map(str, sorted(unknown)[:10]))
    more = ', ...' if len(unknown) > 10 else ''
    return (
      f'it holds the labels {shown}{more}, but {self}; {self._remedy(unknown)}'
    )

  def __str__(self) -> str:
    ignored = {0} if self.zero_is_ignored else set()
    ignored = sorted({*ignored, self.ignored_label})
    return (
      f'{self.num_classes} classes are numbered {self.first} to {self.last} '
      f'(ignored: {", ".join(map(str, ignored))})'
    )

  def _remedy(self, unknown: Collection[int]) -> str:
    if not self.fields:
      return 'it belongs to another data set'
    highest = max(unknown)
    if not self.zero_is_ignored and highest == self.num_classes:
      return (
        'if 0 means "other", set data.zero_is_ignored=True; if it is a class, '
        f'data.class_names must name {highest + 1}'
      )
    if len(unknown) == 1:
      return (
        f'if {highest} means "ignored", set data.ignored_label={highest}; if '
        f'it is a class, data.class_names must name {highest + 1 - self.first}'
      )
    return (
      f'data.class_names must name {highest + 1 - self.first}, or the files be '
      'numbered anew'
    )
