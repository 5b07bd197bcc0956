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

_SOURCES = {
  'ade20k': lambda config, split: open_ade20k(config.dir, split),
  'coco': open_coco,
  'digits': lambda config, split: Digits(split),
  'folder': lambda config, split: Folder(config.dir, split),
  'imagenet2012': lambda config, split: ImageNet(config.dir, split),
  'scenes': lambda config, split: Scenes(split),
  'scene_objects': lambda config, split: Objects(
    Scenes(split), Scenes.class_names[1:]
  ),
  'segmentation_folder': open_segmentation_folder,
}


def make_source(
  config: ml_collections.ConfigDict, split: str
) -> LabelledImages | LabelMaps | Coco:
  """Opens one split of the data set `config.name`, stored in `config.dir`.

  Args:
    config: `config.data` of an experiment.
    split: 'train' or 'validation'; prepared data sets also take parts in the
      notation of TFDS ('train[:99%]'), folders also 'test'.

  Raises:
    lookup.UnknownName: no data set has this name.
    ValueError: the split or the content of `config.dir` is not as expected.
    FileNotFoundError: nothing is at `config.dir`.
  """
  open_split = lookup.find(_SOURCES, config.name, 'Data set')
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
