"""Data sets in the storage of TFDS, read without TensorFlow."""

import os
from typing import Any

from etils import epath

from acmix_jax.data import decode, stalls


class Records:
  """The records of one split of a data set, images not decoded.

  Attributes:
    name: name of the data set.
    directory: the folder of the prepared version.
    split: name of the split, or parts of some.
    features: the description of the records, by key.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    name: str,
    split: str,
    otherwise: str = '',
  ):
    """Reads the description of the data set, and no records.

    Args:
      directory: the folder of the prepared version itself, or a `data_dir`
        that holds just one, as in DIR/NAME/1.0.0.
      name: name of the data set.
      split: name of a split, or parts of them: 'train[:99%]'.
      otherwise: what else may be done where nothing is found, for the message:
        ', or ...'.

    Raises:
      FileNotFoundError: no prepared data set was found.
      ValueError: several were found, or its format or the split is not known.
    """
    self.name, self.split = name, split
    self.directory = str(_find_prepared(directory, name, otherwise))
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(self.directory)
    self.features = dict(builder.info.features)
    decoders = {
      key: tfds.decode.SkipDecoding()
      for key, feature in self.features.items()
      if isinstance(feature, tfds.features.Image)
    }
    try:
      self._records = builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
      raise ValueError(
        f'{self.directory} is stored as {builder.info.file_format.value}, '
        'which has no random access; convert it with `tfds convert_format '
        '--out_file_format=array_record`, or prepare it anew with '
        '`python -m acmix_jax.tools.prepare`.'
      ) from error
    except (KeyError, ValueError) as error:
      raise ValueError(
        f'{self.directory} has no split {split!r}; it holds: '
        f'{", ".join(builder.info.splits) or "none"}.'
      ) from error

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads one record.

    Raises:
      decode.DecodeError: a part of the file is damaged.
    """
    name = f'record {index} of {self.split} in {self.directory}'
    try:
      with stalls.watched(name):
        return self._records[index]
    except RuntimeError as error:  # A damaged part of an array_record file.
      raise decode.DecodeError(f'{name}: {error}') from error


def _find_prepared(
  directory: str | os.PathLike, name: str, otherwise: str
) -> epath.Path:
  hint = (
    f'prepare one with `python -m acmix_jax.tools.prepare {name} --source=DIR '
    f'--data_dir=DATA` and set data.dir to DATA{otherwise}'
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
