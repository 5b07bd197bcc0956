"""Handwritten digits, the data set that needs no download."""

from typing import Any

import numpy as np

from acmix_jax.data.sources import source, splits


class Digits(source.LabelledImages):
  """Handwritten digits, 8 x 8 pixels, part of the scikit-learn package.

  1,433 images for training and 364 for validation: of each class the first and
  every fifth after it are held out. Both hold digits of the same writers.
  """

  class_names = tuple(str(digit) for digit in range(10))
  origin = 'scikit-learn'

  def __init__(self, split: str):
    splits.check_split(split, 'digits')
    from sklearn import datasets

    digits = datasets.load_digits()
    indices = splits.split_indices(digits.target, split, every=5)
    # Stored levels are 0 to 16.
    levels = np.round(digits.images[indices] * (255 / 16)).astype(np.uint8)
    self._images = np.repeat(levels[..., None], 3, axis=-1)
    self._labels = digits.target[indices]
    self._names = [f'digits/{index}' for index in indices]

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {
      'image': self._images[index],
      'label': np.int32(self._labels[index]),
      'name': self._names[index],
    }
