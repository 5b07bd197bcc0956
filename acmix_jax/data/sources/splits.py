"""Splits of data sets that come without any."""

import numpy as np


def check_split(split: str, name: str, note: str = '') -> None:
  """Raises a ValueError where a split is not 'train' or 'validation'."""
  if split not in ('train', 'validation'):
    raise ValueError(
      f"Data {name!r}{note} has the splits 'train' and 'validation', "
      f'not {split!r}.'
    )


def split_indices(labels: np.ndarray, split: str, every: int) -> np.ndarray:
  """Indices of a split that holds out one in `every` of each class."""
  held_out = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    held_out[np.flatnonzero(labels == label)[::every]] = True
  return np.flatnonzero(held_out == (split == 'validation'))
