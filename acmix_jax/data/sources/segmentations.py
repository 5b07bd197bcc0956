"""Polygons and run lengths of many objects in one array of bytes."""

import dataclasses
import itertools
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

# As pycocotools takes it: polygons x1 y1 x2 y2 ..., or {'size': [h, w],
# 'counts': bytes}.
Segmentation = list[np.ndarray] | dict[str, Any]

_WRONG_TOTAL = 'annotations whose RLE does not fill their image'

_NONE, _POLYGONS, _RLE = range(3)
_CHUNK = 4096  # Objects whose run lengths are summed at once.


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentations:
  """Segmentations of m objects, each in as few bytes as pycocotools needs.

  Attributes:
    content: uint8 [t]. Polygons: float64, the number of polygons, that of the
      coordinates of each, and the coordinates. RLE: its compressed counts.
    content_starts: int64 [m + 1]; object i has content_starts[i]:[i + 1].
    kinds: uint8 [m]; 0: none, 1: polygons, 2: RLE.
  """

  content: np.ndarray
  content_starts: np.ndarray
  kinds: np.ndarray

  def get(self, index: int, height: int, width: int) -> Segmentation | None:
    """An object's polygons or RLE; None: it has none.

    Args:
      index: the object.
      height: height of its image, in pixels.
      width: width of its image, in pixels.
    """
    start, end = self.content_starts[index : index + 2]
    content = self.content[start:end]
    if self.kinds[index] == _NONE:
      return None
    if self.kinds[index] == _RLE:
      return {'size': [height, width], 'counts': content.tobytes()}
    numbers = np.frombuffer(content.tobytes())
    count = int(numbers[0])
    lengths = numbers[1 : count + 1].astype(int)
    ends = count + 1 + np.cumsum(lengths)
    return [numbers[e - n : e] for e, n in zip(ends, lengths, strict=True)]


def pack(
  given: Sequence[Any], sizes: np.ndarray
) -> tuple[Segmentations, dict[int, str], list[int]]:
  """Packs the segmentations of a file in COCO format.

  Args:
    given: of each object: polygons, an RLE (counts as numbers, or compressed),
      or None.
    sizes: int [m, 2], height and width of the object's image.

  Returns:
    The segmentations; what is wrong with some, by object; and the objects that
    lost polygons of fewer than three corners or half a corner, as they do in
    mmdetection and detectron2.
  """
  contents, kinds = [], np.zeros(len(given), np.uint8)
  wrong, thinned = {}, []
  for index, segmentation in enumerate(given):
    content = b''
    try:
      if isinstance(segmentation, dict):
        kinds[index] = _RLE
        content = _compress(segmentation, *sizes[index].tolist())
      elif segmentation and not isinstance(segmentation, list):
        raise TypeError
      elif segmentation:
        polygons = [
          polygon
          for polygon in segmentation
          if len(polygon) >= 6 and len(polygon) % 2 == 0
        ]
        if len(polygons) < len(segmentation):
          thinned.append(index)
        if polygons:
          kinds[index] = _POLYGONS
          content = _to_bytes(polygons)
    except _WrongSegmentation as error:
      wrong[index] = str(error)
    except (TypeError, ValueError, KeyError, OverflowError):
      wrong[index] = (
        'annotations whose segmentation is neither polygons (lists of x1 y1 x2 '
        "y2 ...) nor an RLE ({'size', 'counts'})"
      )
    contents.append(content)
  starts = np.zeros(len(given) + 1, np.int64)
  starts[1:] = np.cumsum([len(content) for content in contents])
  packed = Segmentations(
    np.frombuffer(b''.join(contents), np.uint8), starts, kinds
  )
  for index in np.flatnonzero(kinds == _RLE)[_wrong_totals(packed, sizes)]:
    wrong.setdefault(int(index), _WRONG_TOTAL)
  return packed, wrong, thinned


class _WrongSegmentation(Exception):
  pass


def _compress(rle: dict[str, Any], height: int, width: int) -> bytes:
  if list(rle['size']) != [height, width]:
    raise _WrongSegmentation(
      'annotations whose RLE has another size than their image'
    )
  counts = rle['counts']
  if isinstance(counts, str):
    return counts.encode('ascii')
  if min(counts) < 0 or sum(counts) != height * width:
    raise _WrongSegmentation(_WRONG_TOTAL)
  return coco_mask.frPyObjects(rle, height, width)['counts']


def _to_bytes(polygons: Sequence[Sequence[float]]) -> bytes:
  numbers = array('d', [len(polygons), *map(len, polygons)])
  numbers.extend(itertools.chain.from_iterable(polygons))
  if not np.isfinite(numbers).all():
    raise _WrongSegmentation('annotations with corners that are not finite')
  return numbers.tobytes()


def _wrong_totals(packed: Segmentations, sizes: np.ndarray) -> np.ndarray:
  """Which of the RLEs have runs that do not add up to their image, bool.

  pycocotools fills what is missing with whatever lies in memory.
  """
  chosen = np.flatnonzero(packed.kinds == _RLE)
  wrong = [np.zeros(0, bool)]
  for first in range(0, len(chosen), _CHUNK):
    some = chosen[first : first + _CHUNK]
    counts = [packed.get(index, 0, 0)['counts'] for index in some]
    wrong.append(sum_runs(counts) != sizes[some].astype(np.int64).prod(1))
  return np.concatenate(wrong)


def sum_runs(counts: Sequence[bytes]) -> np.ndarray:
  """Sums of the run lengths of compressed RLEs, int64 [n]; -1: no RLE.

  A number has 5 bits a character, the lowest first; 32 marks that more follow.
  From the fourth on it is the difference to the last but one.
  """
  lengths = np.array([len(item) for item in counts], np.int64)
  owner = np.repeat(np.arange(len(counts)), lengths)
  digits = np.frombuffer(b''.join(counts), np.uint8).astype(np.int64) - 48
  known = np.bincount(
    owner[(digits < 0) | (digits > 63)], minlength=len(counts)
  )
  first = np.zeros(len(digits), bool)
  first[:1] = True
  first[1:] = (digits[:-1] & 32 == 0) | (owner[1:] != owner[:-1])
  number = np.cumsum(first) - 1
  place = np.arange(len(digits)) - np.flatnonzero(first)[number]
  values = np.zeros(first.sum(), np.int64)
  np.add.at(values, number, (digits & 31) << np.minimum(5 * place, 55))
  last = np.append(first[1:], True)[: len(first)]
  negative = last & (digits & 16 != 0)
  values[number[negative]] -= 1 << np.minimum(5 * (place[negative] + 1), 60)
  # Each number counts in its own run and in every second one after it.
  owner = owner[first]
  many = np.bincount(owner, minlength=len(counts))
  index = np.arange(len(owner)) - (np.cumsum(many) - many)[owner]
  times = np.where(index == 0, 1, (many[owner] - 1 - index) // 2 + 1)
  totals = np.zeros(len(counts), np.int64)
  np.add.at(totals, owner, values * times)
  return np.where(known + (many == 0), -1, totals)
