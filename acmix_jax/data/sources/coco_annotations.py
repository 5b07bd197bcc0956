"""What a file in COCO format says of images and objects, as arrays.

Dicts of COCO's 860,001 objects, which the JSON file becomes while it is read,
take about 3.5 GB. The arrays here take 0.45 GB, in every worker process.
"""

import dataclasses
import functools
import io
import os
from typing import Any

import numpy as np
from etils import epath

from acmix_jax.data.sources import segmentations


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """Images and objects of a file; the objects are sorted by image.

  A label is the place of a category in the file: ids need not be contiguous.

  Attributes:
    file_names: str [n], image files, relative to their folder.
    image_ids: int64 [n].
    sizes: int32 [n, 2], height and width of the images as the file has them.
    category_names: str [k].
    category_ids: int64 [k].
    starts: int64 [n + 1]; the objects of image i are starts[i]:starts[i + 1].
    object_ids: int64 [m].
    labels: int32 [m], from 0.
    boxes: float64 [m, 4], x y w h in pixels, unclipped.
    areas: float64 [m], pixels of the objects.
    crowd: bool [m], whether the box is around a group of objects.
    ignored: bool [m], whether the file marks the object with `ignore`.
    shapes: the segmentations of the objects.
  """

  file_names: np.ndarray
  image_ids: np.ndarray
  sizes: np.ndarray
  category_names: np.ndarray
  category_ids: np.ndarray
  starts: np.ndarray
  object_ids: np.ndarray
  labels: np.ndarray
  boxes: np.ndarray
  areas: np.ndarray
  crowd: np.ndarray
  ignored: np.ndarray
  shapes: segmentations.Segmentations

  @property
  def images(self) -> np.ndarray:
    """Index of each object's image, int64 [m]."""
    return np.repeat(np.arange(len(self.image_ids)), np.diff(self.starts))

  @functools.cached_property
  def trainable(self) -> np.ndarray:
    """Which objects are learnt, bool [m].

    Source: mmdetection's `CocoDataset`: no crowds, nothing marked `ignore`,
    no box without a pixel of the image, no area of 0, no side below a pixel.
    """
    size = self.sizes[self.images][:, ::-1]
    first, sides = self.boxes[:, :2], self.boxes[:, 2:]
    inside = np.minimum(first + sides, size) - np.maximum(first, 0)
    kept = (inside > 0).all(1) & (self.areas > 0) & (sides >= 1).all(1)
    return kept & ~self.crowd & ~self.ignored

  def size(self, index: int) -> tuple[int, int]:
    """Height and width of an image, as the file has them."""
    height, width = self.sizes[index]
    return int(height), int(width)

  def objects(self, index: int) -> range:
    """The objects of an image."""
    return range(int(self.starts[index]), int(self.starts[index + 1]))

  def segmentation(self, index: int) -> segmentations.Segmentation | None:
    """An object's polygons or RLE, as pycocotools takes them; None: none."""
    image = int(np.searchsorted(self.starts, index, 'right')) - 1
    return self.shapes.get(index, *self.size(image))

  def to_coco(self) -> dict[str, list[dict[str, Any]]]:
    """Images, annotations and categories as pycocotools takes them.

    The annotations have numbers from 1 on instead of their ids: pycocotools
    takes a match with the id 0 for none.
    """
    image_ids = self.image_ids.tolist()
    sizes = self.sizes.tolist()
    annotations = []
    for index, image in enumerate(self.images.tolist()):
      shape = self.shapes.get(index, *sizes[image])
      annotation = {
        'id': index + 1,
        'image_id': image_ids[image],
        'category_id': int(self.category_ids[self.labels[index]]),
        'bbox': self.boxes[index].tolist(),
        'area': float(self.areas[index]),
        'iscrowd': int(self.crowd[index]),
      }
      if isinstance(shape, list):
        shape = [polygon.tolist() for polygon in shape]
      if shape is not None:
        annotation['segmentation'] = shape
      annotations.append(annotation)
    return {
      'images': [
        {'id': image_id, 'file_name': str(name), 'height': h, 'width': w}
        for image_id, name, (h, w) in zip(
          image_ids, self.file_names, sizes, strict=True
        )
      ],
      'annotations': annotations,
      'categories': [
        {'id': int(category), 'name': str(name)}
        for category, name in zip(
          self.category_ids, self.category_names, strict=True
        )
      ],
    }

  def save(self, path: str | os.PathLike) -> None:
    """Writes an .npz file for `load`, which reads it in about a second."""
    content = io.BytesIO()
    arrays = {**vars(self), **vars(self.shapes)}
    np.savez(content, **{name: arrays[name] for name in _stored()})
    epath.Path(path).write_bytes(content.getvalue())


def load(path: str | os.PathLike) -> Annotations:
  """Reads what `Annotations.save` wrote."""
  content = io.BytesIO(epath.Path(path).read_bytes())
  with np.load(content, allow_pickle=False) as file:
    arrays = {name: file[name] for name in _stored()}
  shapes = {
    name: arrays.pop(name) for name in _names(segmentations.Segmentations)
  }
  return Annotations(**arrays, shapes=segmentations.Segmentations(**shapes))


def _names(cls: type) -> list[str]:
  return [field.name for field in dataclasses.fields(cls)]


def _stored() -> list[str]:
  """Names of the arrays in a file."""
  own = [name for name in _names(Annotations) if name != 'shapes']
  return own + _names(segmentations.Segmentations)
