"""Data sets: random access to examples, before decoding.

scikit-learn and TFDS take seconds to import, which every worker process would
spend again: only the sources that need them do.
"""

import logging

import ml_collections

from acmix_jax import lookup
from acmix_jax.data import stalls
from acmix_jax.data.sources.digits import Digits
from acmix_jax.data.sources.folder import Folder
from acmix_jax.data.sources.imagenet import ImageNet
from acmix_jax.data.sources.source import LabelledImages, Source

__all__ = [
  'Digits',
  'Folder',
  'ImageNet',
  'LabelledImages',
  'Source',
  'make_source',
]

logger = logging.getLogger(__name__)

_SOURCES = {
  'digits': lambda config, split: Digits(split),
  'folder': lambda config, split: Folder(config.dir, split),
  'imagenet2012': lambda config, split: ImageNet(config.dir, split),
}


def make_source(
  config: ml_collections.ConfigDict, split: str
) -> LabelledImages:
  """Opens one split of the data set `config.name`, stored in `config.dir`.

  Args:
    config: `config.data` of an experiment.
    split: 'train' or 'validation'; 'imagenet2012' also takes parts in the
      notation of TFDS ('train[:99%]'), 'folder' also 'test'.

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
