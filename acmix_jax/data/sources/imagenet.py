"""ImageNet-1k, prepared in the storage of TFDS."""

import os
from typing import Any

import numpy as np
from etils import epath

from acmix_jax.data import decode, stalls
from acmix_jax.data.sources import source


class ImageNet(source.LabelledImages):
  """ImageNet-1k as TFDS stores it, read without TensorFlow.

  Reads what `acmix_jax.tools.prepare` or TFDS's own `imagenet2012` wrote, in
  array_record format.
  """

  def __init__(self, directory: str | os.PathLike, split: str):
    """Reads the description of the data set, and no images.

    Args:
      directory: the folder of the prepared version itself, or a `data_dir`
        that holds just one, as in DIR/imagenet2012/1.0.0.
      split: 'train', 'validation', or parts of them: 'train[:99%]'.

    Raises:
      FileNotFoundError: no prepared data set was found.
      ValueError: several were found, or its format or the split is not known.
    """
    self._directory = str(_find_prepared(directory, 'imagenet2012'))
    self.origin = self._directory
    self._split = split
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(self._directory)
    labels = builder.info.features['label']
    self.class_names = tuple(labels.names)
    try:
      self._records = builder.as_data_source(
        split, decoders={'image': tfds.decode.SkipDecoding()}
      )
    except NotImplementedError as error:
      raise ValueError(
        f'{self._directory} is stored as {builder.info.file_format.value}, '
        'which has no random access; convert it with `tfds convert_format '
        '--out_file_format=array_record`, or prepare it anew with '
        '`python -m acmix_jax.tools.prepare`.'
      ) from error
    except (KeyError, ValueError) as error:
      raise ValueError(
        f'{self._directory} has no split {split!r}; it holds: '
        f'{", ".join(builder.info.splits) or "none"}.'
      ) from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = f'record {index} of {self._split} in {self._directory}'
    try:
      with stalls.watched(name):
        record = self._records[index]
    except RuntimeError as error:  # A damaged part of an array_record file.
      raise decode.DecodeError(f'{name}: {error}') from error
    return {
      'image': record['image'],
      'label': np.int32(record['label']),
      'name': record['file_name'].decode(),
    }


def _find_prepared(directory: str | os.PathLike, name: str) -> epath.Path:
  hint = (
    f'prepare one with `python -m acmix_jax.tools.prepare {name} '
    '--source=TARS --data_dir=DIR` and set data.dir to DIR'
  )
  if not directory:
    raise ValueError(
      f'data.dir is empty; data {name!r} needs a folder: {hint}.'
    )
  root = epath.Path(directory).expanduser()
  if (root / name).is_dir():
    root = root / name
  # The name of the version may follow the name of a configuration.
  found = [
    description.parent
    for levels in ('', '*/', '*/*/')
    for description in sorted(root.glob(f'{levels}features.json'))
  ]
  if not found:
    raise FileNotFoundError(
      f'data.dir={directory} holds no data set prepared by TFDS (a folder with '
      f'features.json); {hint}.'
    )
  if len(found) > 1:
    raise ValueError(
      f'data.dir={directory} holds several data sets; set it to one of: '
      f'{", ".join(str(path) for path in found)}.'
    )
  return found[0]
