"""Whether annotations in COCO format fit their images."""

import os
from collections.abc import Sequence

import numpy as np

from acmix_jax.data import decode
from acmix_jax.data.sources import coco_annotations, coco_format, files

# Images whose size is looked up before training; all would take minutes on a
# network. Of any other the size is compared when it is decoded.
_SAMPLE = 64


def check(
  annotations: coco_annotations.Annotations,
  folder: str,
  path: str,
  *,
  with_masks: bool,
  training: bool,
  all_sizes: bool = False,
) -> list[str]:
  """Compares annotations with the images in a folder.

  Args:
    annotations: what was read from `path`.
    folder: where the images are.
    path: name of the file of annotations, for messages.
    with_masks: whether objects must have polygons or an RLE.
    training: whether only those that are learnt must; evaluation counts all.
    all_sizes: whether the size of every image is compared, not of a sample.

  Returns:
    Lines of a report: what the file holds, and what of it is odd.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: images are missing or have other sizes, or objects have no
      segmentation that need one.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'{folder} is no folder; the images of {path} must be in it.'
    )
  mistakes = coco_format.Mistakes(path)
  _check_images(annotations, folder, mistakes, all_sizes)
  if with_masks:
    shapeless = annotations.shapes.kinds == 0
    if training:
      shapeless &= annotations.trainable
    for identity in annotations.object_ids[shapeless].tolist():
      mistakes.add(
        'annotations without polygons or RLE, which masks need '
        '(data.mask_size=0: boxes alone)',
        identity,
      )
  mistakes.raise_if_any()
  return _report(annotations, path)


def _check_images(annotations, folder, mistakes, all_sizes) -> None:
  """Notes images that are missing, and of some or all the wrong sizes."""
  names = annotations.file_names.tolist()
  present = _present(folder, names)
  for name in names:
    if name not in present:
      mistakes.add(f'images that are not in {folder}', name)
  chosen = range(len(names))
  if not all_sizes and len(names) > _SAMPLE:
    chosen = np.linspace(0, len(names) - 1, _SAMPLE).astype(int)
  for index in chosen:
    if names[index] not in present:
      continue
    height, width = annotations.size(index)
    try:
      found = files.read_size(os.path.join(folder, names[index]))
    except (OSError, decode.DecodeError):
      continue  # Counted when it is read; a few may be damaged.
    if found != (height, width):
      turned = found == (width, height)
      mistakes.add(
        'images of another size than the annotations say'
        + (' (turned: the pixels as stored count, not EXIF)' if turned else ''),
        f'{names[index]} ({found[1]} x {found[0]}, not {width} x {height})',
      )


def _present(folder: str, names: Sequence[str]) -> set[str]:
  """Which of the files are in a folder; each subfolder is listed once."""
  present = set()
  for part in {os.path.dirname(name) for name in names}:
    if os.path.isdir(os.path.join(folder, part)):
      found = os.listdir(os.path.join(folder, part))
      present.update(os.path.join(part, name) for name in found)
  return present


def _report(annotations, path) -> list[str]:
  counts = np.diff(annotations.starts)
  lines = [
    f'{path}: {len(counts):,} images, {len(annotations.labels):,} objects of '
    f'{len(annotations.category_ids)} classes, '
    f'{np.count_nonzero(annotations.crowd):,} of them crowds; '
    f'{np.count_nonzero(counts == 0):,} images without objects.'
  ]
  size = annotations.sizes[annotations.images][:, ::-1]
  first, last = annotations.boxes[:, :2], annotations.boxes[:, 2:].copy()
  last += first
  # Files round to hundredths of a pixel.
  outside = ((first < -0.01) | (last > size + 0.01)).any(axis=1)
  learnt = annotations.trainable
  left_out = ~learnt & ~annotations.crowd & ~annotations.ignored
  for kind, chosen in (
    ('marked to be ignored, not trained on', annotations.ignored),
    (
      'not trained on: no pixel inside the image, an area of 0, or a side '
      'below a pixel',
      left_out,
    ),
    ('boxes that reach beyond their image, clipped', outside & learnt),
    (
      'without polygons or RLE',
      (annotations.shapes.kinds == 0) & ~annotations.crowd,
    ),
  ):
    ids = annotations.object_ids[chosen].tolist()
    if ids:
      lines.append(
        f'{len(ids):,} {kind}: annotations {coco_format.shorten(ids)}'
      )
  unused = np.setdiff1d(
    np.arange(len(annotations.category_ids)), annotations.labels
  )
  if len(unused):
    names = annotations.category_names[unused].tolist()
    lines.append(f'classes without objects: {coco_format.shorten(names)}')
  return lines
