"""Reading and checking of files in COCO format.

Mistakes that would silently train on other data than was meant are refused
together, each kind with the ids of its first entries.
"""

import collections
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from acmix_jax.data.sources import coco_annotations, segmentations

logger = logging.getLogger(__name__)

# Ids of one kind that a message names.
_SHOWN = 5


def read(path: str | os.PathLike) -> coco_annotations.Annotations:
  """Reads a JSON file in COCO format.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is no such file, or holds mistakes; up to five ids of each
      kind are named.
  """
  try:
    content = json.loads(epath.Path(path).read_bytes())
  except ValueError as error:
    raise ValueError(f'{path} is no JSON file: {error}') from error
  return from_coco(content, str(path))


def from_coco(
  content: dict[str, Any], origin: str
) -> coco_annotations.Annotations:
  """Checks and packs the content of a file in COCO format.

  Args:
    content: `images`, `categories` and `annotations`; the last may be missing,
      as in the files of the test sets.
    origin: name of the file, for messages.

  Raises:
    ValueError: a part is missing, or the file holds mistakes; up to five ids of
      each kind are named.
  """
  if isinstance(content, dict):
    content = {'annotations': [], **content}
  for key in ('images', 'annotations', 'categories'):
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      raise ValueError(
        f'{origin} has no list {key!r}; expected a file in COCO format with '
        'images, annotations and categories.'
      )
    if key != 'annotations' and not content[key]:
      raise ValueError(f'{origin} lists no {key}.')
  mistakes = Mistakes(origin)
  images = _checked(content['images'], _IMAGE, 'image', mistakes)
  categories = _checked(content['categories'], _CATEGORY, 'category', mistakes)
  names = collections.Counter(entry['name'] for entry in categories)
  for entry in categories:
    if names[entry['name']] > 1:
      kind = 'categories with the name of another'
      mistakes.add(kind, f'{entry["id"]} ({entry["name"]})')
  annotations = _checked(
    content['annotations'], _ANNOTATION, 'annotation', mistakes
  )
  mistakes.raise_if_any()
  return _pack(images, categories, annotations, mistakes)


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and abs(value) < float('inf')


def _is_id(value: Any) -> bool:
  # An image's id goes to the device, which has 32 bits.
  return isinstance(value, int) and 0 <= value < 2**31


def _is_box(value: Any) -> bool:
  return (
    isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))
  )


def _is_side(value: Any) -> bool:
  return isinstance(value, int) and 0 < value < 2**16


def _is_name(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


# What each entry must have, and what it must be.
_ID = ('id', _is_id, 'a whole number from 0 to 2^31 - 1')
_IMAGE = (
  _ID,
  ('file_name', _is_name, 'a name'),
  ('height', _is_side, 'a number of pixels below 65,536'),
  ('width', _is_side, 'a number of pixels below 65,536'),
)
_CATEGORY = (_ID, ('name', _is_name, 'a name'))
_ANNOTATION = (
  _ID,
  ('image_id', _is_id, 'the id of an image'),
  ('category_id', _is_id, 'the id of a category'),
  ('bbox', _is_box, 'x, y, width and height, four numbers'),
)


class Mistakes:
  """Mistakes of a file: kind -> the first ids, and how many there are."""

  def __init__(self, origin: str):
    self.origin = origin
    self._ids = collections.defaultdict(list)

  def add(self, kind: str, identity: Any) -> None:
    self._ids[kind].append(identity)

  def raise_if_any(self) -> None:
    if self._ids:
      lines = [f'{kind}: {shorten(ids)}' for kind, ids in self._ids.items()]
      raise ValueError(
        f'{self.origin} holds mistakes; mend or leave out these entries:\n  '
        + '\n  '.join(lines)
      )


def shorten(ids: Sequence[Any]) -> str:
  """The first ids of many, and how many more there are."""
  more = f' and {len(ids) - _SHOWN} more' if len(ids) > _SHOWN else ''
  return ', '.join(map(str, ids[:_SHOWN])) + more


def _checked(entries, fields, what, mistakes) -> list[dict[str, Any]]:
  """Entries that have what they must; notes the others and double ids."""
  kept, seen = [], set()
  for place, entry in enumerate(entries):
    entry = entry if isinstance(entry, dict) else {}
    wrong = [
      (name, expected)
      for name, is_right, expected in fields
      if not is_right(entry.get(name))
    ]
    identity = entry.get('id', f'entry {place}')
    for name, expected in wrong:
      mistakes.add(f'{what}s whose {name!r} is not {expected}', identity)
    if wrong:
      continue
    if identity in seen:
      mistakes.add(f'{what}s with the id of another', identity)
    seen.add(identity)
    kept.append(entry)
  return kept


def _pack(
  images, categories, annotations, mistakes
) -> coco_annotations.Annotations:
  places = {image['id']: place for place, image in enumerate(images)}
  labels = {entry['id']: label for label, entry in enumerate(categories)}
  image = np.array(
    [places.get(entry['image_id'], -1) for entry in annotations], np.int64
  )
  label = np.array(
    [labels.get(entry['category_id'], -1) for entry in annotations], np.int32
  )
  for place in np.flatnonzero((image < 0) | (label < 0)):
    entry = annotations[place]
    if image[place] < 0:
      kind = 'annotations of images that are not listed'
      mistakes.add(kind, f'{entry["id"]} (image {entry["image_id"]})')
    if label[place] < 0:
      kind = 'annotations of categories that are not listed'
      mistakes.add(kind, f'{entry["id"]} (category {entry["category_id"]})')
  mistakes.raise_if_any()
  # In the order of the file within an image.
  order = np.argsort(image, kind='stable')
  annotations = [annotations[place] for place in order]
  image, label = image[order], label[order]
  sizes = np.array([(x['height'], x['width']) for x in images], np.int32)
  boxes = [entry['bbox'] for entry in annotations]
  shapes = _pack_segmentations(annotations, sizes[image], mistakes)
  counts = np.bincount(image, minlength=len(images))
  return coco_annotations.Annotations(
    file_names=np.array([entry['file_name'] for entry in images]),
    image_ids=np.array([entry['id'] for entry in images], np.int64),
    sizes=sizes,
    category_names=np.array([entry['name'] for entry in categories]),
    category_ids=np.array([entry['id'] for entry in categories], np.int64),
    starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
    object_ids=np.array([entry['id'] for entry in annotations], np.int64),
    labels=label,
    boxes=np.array(boxes, np.float64).reshape(-1, 4),
    areas=_areas(annotations),
    crowd=_flags(annotations, 'iscrowd'),
    ignored=_flags(annotations, 'ignore'),
    shapes=shapes,
  )


def _pack_segmentations(annotations, sizes, mistakes):
  given = [entry.get('segmentation') for entry in annotations]
  shapes, wrong, thinned = segmentations.pack(given, sizes)
  for place, kind in wrong.items():
    mistakes.add(kind, annotations[place]['id'])
  mistakes.raise_if_any()
  if thinned:
    logger.warning(
      '%s: polygons of fewer than three corners, or of half a corner, are left '
      'out of the annotations %s.',
      mistakes.origin,
      shorten([annotations[place]['id'] for place in thinned]),
    )
  return shapes


def _areas(annotations) -> np.ndarray:
  """Areas in pixels, float64 [m]; that of the box where the file has none."""
  areas = [
    entry.get('area', entry['bbox'][2] * entry['bbox'][3])
    for entry in annotations
  ]
  return np.array(areas, np.float64)


def _flags(annotations, name: str) -> np.ndarray:
  return np.array([bool(entry.get(name)) for entry in annotations], bool)
