"""COCO 2017, and any other data in COCO format."""

import logging
import os
from typing import Any, Protocol

import ml_collections
import numpy as np
from etils import epath

from acmix_jax.data.sources import (
  coco_annotations,
  coco_audit,
  coco_format,
  files,
  prepared,
  splits,
)
from acmix_jax.data.transforms import masks

logger = logging.getLogger(__name__)

# Name of the packed data set.
PACKED = 'coco2017'
# File of annotations and folder of images of each split.
OFFICIAL = {
  'train': ('annotations/instances_train2017.json', 'train2017'),
  'validation': ('annotations/instances_val2017.json', 'val2017'),
}

# Images of a shorter side below this are not trained on. Source: mmdetection.
_MIN_SIDE = 32


class Images(Protocol):
  """The encoded images of a file of annotations, in its order."""

  origin: str

  def read(self, index: int) -> bytes:
    """The content of an image file."""

  def name(self, index: int) -> str:
    """What leads a person to the image."""


class Coco:
  """Images with boxes, labels and masks of their objects.

  Examples have `image` (bytes), `boxes`, float32 [n, 4]: x1 y1 x2 y2 in pixels,
  not clipped to the image; `labels`, int32 [n]; `masks`, a `masks.Masks` of n;
  `image_id`, `name` and, of several canvases, `canvas`. The objects are those
  that are learnt, see `Annotations.trainable`; crowds and objects to be ignored
  are not among them.

  In training the images are those of at least 32 pixels in height and width
  that the file has an annotation for, a crowd or not, or all of that size; in
  evaluation all are.

  Attributes:
    annotations: all images and objects of the file.
    class_names: names of the categories in the order of the file; a label is
      an index into them.
    canvases: int [n], see `orientation`; None: all images share one.
    origin: where the data come from, for the log.
  """

  def __init__(
    self,
    annotations: coco_annotations.Annotations,
    images: Images,
    *,
    training: bool,
    empty_images: bool = False,
    by_orientation: bool = True,
  ):
    """Chooses the images.

    Args:
      annotations: of all images.
      images: the images themselves.
      training: whether to leave out what is not trained on.
      empty_images: whether images without annotations are training images.
      by_orientation: whether wide images and others are on different canvases.

    Raises:
      ValueError: no image is left.
    """
    self.annotations, self._images = annotations, images
    self.class_names = tuple(annotations.category_names.tolist())
    self.origin = images.origin
    used = np.ones(len(annotations.image_ids), bool)
    if training:
      used = annotations.sizes.min(axis=1) >= _MIN_SIDE
      if not empty_images:
        used &= np.diff(annotations.starts) > 0
    self._indices = np.flatnonzero(used)
    if not len(self._indices):
      raise ValueError(
        f'{self.origin}: none of {len(used)} images is a training image: they '
        f'have no annotations or a side below {_MIN_SIDE} pixels '
        '(data.train_empty_images adds those without annotations).'
      )
    self.canvases = None
    if by_orientation:
      self.canvases = orientation(annotations.sizes[self._indices])

  @property
  def num_classes(self) -> int:
    """Number of categories."""
    return len(self.class_names)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = int(self._indices[index])
    annotations = self.annotations
    objects = annotations.objects(image)
    objects = [k for k in objects if annotations.trainable[k]]
    boxes = annotations.boxes[objects]
    boxes[:, 2:] += boxes[:, :2]
    shapes = [annotations.segmentation(k) for k in objects]
    return {
      'image': self._images.read(image),
      'boxes': boxes.astype(np.float32),
      'labels': annotations.labels[objects],
      'masks': masks.Masks(shapes, *annotations.size(image)),
      'image_id': int(annotations.image_ids[image]),
      'name': self._images.name(image),
      **self._canvas(index),
    }

  def blank(self, index: int) -> dict[str, Any]:
    """A black pixel without objects."""
    return {
      'image': np.zeros((1, 1, 3), np.uint8),
      'boxes': np.zeros((0, 4), np.float32),
      'labels': np.zeros(0, np.int32),
      'masks': masks.Masks([], 1, 1),
      'image_id': -1,
      **self._canvas(index),
    }

  def _canvas(self, index: int) -> dict[str, int]:
    if self.canvases is None:
      return {}
    return {'canvas': int(self.canvases[index])}


def orientation(sizes: np.ndarray) -> np.ndarray:
  """The canvas of images of the given heights and widths, int [n, 2].

  Returns:
    int [n], 0 for images wider than high, 1 for the others: the two groups of
    mmdetection, none of whose batches holds images of both.
  """
  return (sizes[:, 1] <= sizes[:, 0]).astype(np.int64)


class ImageFiles:
  """Image files in a folder.

  Attributes:
    origin: the folder.
  """

  def __init__(self, folder: str, names: np.ndarray):
    """Takes the names of the files, relative to the folder; looks at none."""
    self.origin = folder
    self._names = names

  def name(self, index: int) -> str:
    """See `Images`."""
    return os.path.join(self.origin, self._names[index])

  def read(self, index: int) -> bytes:
    """See `Images`."""
    return files.read(self.name(index))


class PackedImages:
  """Images that `acmix_jax.tools.prepare coco2017` wrote.

  Attributes:
    origin: the folder of the prepared version.
  """

  def __init__(
    self,
    records: prepared.Records,
    annotations: coco_annotations.Annotations,
  ):
    """Takes records in the order of the annotations.

    Raises:
      ValueError: there are more or fewer.
    """
    self.origin = records.directory
    self._records = records
    self._image_ids = annotations.image_ids
    self._names = annotations.file_names
    if len(records) != len(self._image_ids):
      raise ValueError(
        f'{self.origin} holds {len(records)} images, but annotations of '
        f'{len(self._image_ids)}; prepare it anew.'
      )

  def name(self, index: int) -> str:
    """See `Images`."""
    return f'{self._names[index]} in {self.origin}'

  def read(self, index: int) -> bytes:
    """See `Images`."""
    record = self._records[index]
    if record['image_id'] != self._image_ids[index]:
      raise ValueError(
        f'Record {index} of {self.origin} is image {record["image_id"]}, not '
        f'{self._image_ids[index]} as in the annotations; prepare it anew.'
      )
    return record['image']


def open_coco(config: ml_collections.ConfigDict, split: str) -> Coco:
  """Opens one split of a data set in COCO format.

  Args:
    config: `config.data`. Read are `dir`; for training `train_annotations`, a
      JSON file, and `train_images`, a folder, both relative to `dir`; for
      evaluation `eval_annotations` and `eval_images`; `train_empty_images`,
      whether images without annotations are trained on; `mask_size`, where 0
      stands for boxes alone; `canvases`, of which two are those of
      `orientation`. If the JSON file is not there, `dir` may also be
      what `acmix_jax.tools.prepare coco2017` wrote.
    split: 'train' or 'validation'.

  Raises:
    FileNotFoundError: a file or folder is missing.
    ValueError: the annotations hold mistakes, or do not fit the images.
  """
  splits.check_split(split, config.name)
  training = split == 'train'
  part = 'train' if training else 'eval'
  path, folder = (
    os.path.join(os.path.expanduser(config.dir), config[f'{part}_{kind}'])
    for kind in ('annotations', 'images')
  )
  if config.dir and os.path.isfile(path):
    annotations = coco_format.read(path)
    lines = coco_audit.check(
      annotations,
      folder,
      path,
      with_masks=config.mask_size > 0,
      training=training,
    )
    logger.info('%s', '\n  '.join(lines))
    images = ImageFiles(folder, annotations.file_names)
  else:
    try:
      records = prepared.Records(config.dir, PACKED, split)
    except FileNotFoundError as error:
      raise FileNotFoundError(
        f'There is no file {path} (data.dir, data.{part}_annotations). {error}'
      ) from error
    annotations = coco_annotations.load(packed_path(records.directory, split))
    images = PackedImages(records, annotations)
  if training and not annotations.trainable.any():
    raise ValueError(
      f'{path} (data.train_annotations) holds no object to learn: '
      f'{len(annotations.labels)} annotations, all of which are crowds, to be '
      'ignored, or without pixels. Give the file of the training images that '
      'has their boxes.'
    )
  return Coco(
    annotations,
    images,
    training=training,
    empty_images=config.train_empty_images,
    by_orientation=len(config.canvases) > 1,
  )


def packed_path(directory: str | os.PathLike, split: str) -> epath.Path:
  """Where the annotations of a packed split are."""
  return epath.Path(directory) / f'annotations_{split}.npz'
