"""Data sets: random access to examples, before decoding.

scikit-learn and TFDS take seconds to import, which every worker process would
spend again: only the sources that need them do.
"""

import logging

import ml_collections

from acmix_jax import lookup
from acmix_jax.data import stalls
from acmix_jax.data.sources.ade20k import open_ade20k
from acmix_jax.data.sources.coco import Coco, open_coco
from acmix_jax.data.sources.digits import Digits
from acmix_jax.data.sources.folder import Folder
from acmix_jax.data.sources.imagenet import ImageNet
from acmix_jax.data.sources.label_files import LabelFiles
from acmix_jax.data.sources.objects import Objects
from acmix_jax.data.sources.scenes import Scenes
from acmix_jax.data.sources.segmentation_folder import open_segmentation_folder
from acmix_jax.data.sources.source import (
  LabelledImages,
  LabelMaps,
  OnCanvases,
  Source,
)

__all__ = [
  'Coco',
  'Digits',
  'Folder',
  'ImageNet',
  'LabelFiles',
  'LabelMaps',
  'LabelledImages',
  'Objects',
  'OnCanvases',
  'Scenes',
  'Source',
  'make_source',
]

logger = logging.getLogger(__name__)

# By what belongs to an image, and by name.
_SOURCES = {
  'classes': {
    'digits': lambda config, split: Digits(split),
    'folder': lambda config, split: Folder(config.dir, split),
    'imagenet2012': lambda config, split: ImageNet(config.dir, split),
  },
  'label maps': {
    'ade20k': lambda config, split: open_ade20k(config.dir, split),
    'scenes': lambda config, split: Scenes(split),
    'segmentation_folder': open_segmentation_folder,
  },
  'boxes': {
    'coco': open_coco,
    'scene_objects': lambda config, split: Objects(
      Scenes(split), Scenes.class_names[1:]
    ),
  },
}


def make_source(
  config: ml_collections.ConfigDict, split: str, labels: str | None = None
) -> LabelledImages | LabelMaps | Coco:
  """Opens one split of the data set `config.name`, stored in `config.dir`.

  Args:
    config: `config.data` of an experiment.
    split: 'train' or 'validation'; prepared data sets also take parts in the
      notation of TFDS ('train[:99%]'), folders also 'test'.
    labels: what shall belong to an image: 'classes', 'label maps' or 'boxes';
      None: whatever the data set has.

  Raises:
    lookup.UnknownName: no data set has this name.
    ValueError: it has other labels, or the split or the content of `config.dir`
      is not as expected.
    FileNotFoundError: nothing is at `config.dir`.
  """
  known = {name: x for group in _SOURCES.values() for name, x in group.items()}
  open_split = lookup.find(known, config.name, 'Data set')
  if labels is not None and config.name not in _SOURCES[labels]:
    raise ValueError(
      f'Data {config.name!r} has no {labels}, which the task needs: set '
      f'data.name to one of {", ".join(_SOURCES[labels])}.'
    )
  with stalls.watched(f'the list of files in {config.dir}'):
    source = open_split(config, split)
  logger.info(
    'Split %r: %d images of %d classes from %s.',
    split,
    len(source),
    source.num_classes,
    source.origin,
  )
  return source
