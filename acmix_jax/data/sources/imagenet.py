"""ImageNet-1k, prepared in the storage of TFDS."""

import os
from typing import Any

import numpy as np

from acmix_jax.data.sources import prepared, source


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
    self._records = prepared.Records(directory, 'imagenet2012', split)
    self.origin = self._records.directory
    self.class_names = tuple(self._records.features['label'].names)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records[index]
    return {
      'image': record['image'],
      'label': np.int32(record['label']),
      'name': record['file_name'].decode(),
    }
