"""Sources of drawn masks in the form of COCO."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from acmix_jax.data.sources import coco_annotations, coco_format, source


class Objects:
  """A source whose examples hold all pixels of their masks, as one like `Coco`.

  The examples have `image`, `boxes`, `labels`, `masks` (bool [n, h, w]) and
  `name` as in the source; what else they have is left out. The id of an image
  is its index.

  Attributes:
    class_names: names of the classes of the boxes; a label is an index.
    origin: where the images come from, for the log.
  """

  canvases = None

  def __init__(self, examples: source.Source, class_names: Sequence[str]):
    """Wraps a source; all examples share a canvas."""
    self._examples = examples
    self.class_names = tuple(class_names)
    self.origin = examples.origin

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.class_names)

  @functools.cached_property
  def annotations(self) -> coco_annotations.Annotations:
    """Ground truth of all examples, each of which is read for it."""
    images, annotations = [], []
    for index in range(len(self)):
      example = self._examples[index]
      height, width = example['masks'].shape[1:]
      images.append(
        {
          'id': index,
          'file_name': example['name'],
          'height': height,
          'width': width,
        }
      )
      for box, label, mask in zip(
        example['boxes'], example['labels'], example['masks'], strict=True
      ):
        x1, y1, x2, y2 = box.tolist()
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
          {
            'id': len(annotations) + 1,
            'image_id': index,
            'category_id': int(label),
            'bbox': [x1, y1, x2 - x1, y2 - y1],
            'area': int(np.count_nonzero(mask)),
            'segmentation': {**rle, 'counts': rle['counts'].decode('ascii')},
          }
        )
    categories = [
      {'id': label, 'name': name} for label, name in enumerate(self.class_names)
    ]
    content = {
      'images': images,
      'annotations': annotations,
      'categories': categories,
    }
    return coco_format.from_coco(content, self.origin)

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self._examples[index]
    kept = ('image', 'boxes', 'labels', 'masks', 'name')
    return {key: example[key] for key in kept} | {'image_id': index}

  def blank(self, index: int) -> dict[str, Any]:
    """See `Source`."""
    example = self._examples.blank(index)
    kept = ('image', 'boxes', 'labels', 'masks')
    return {key: example[key] for key in kept} | {'image_id': -1}
