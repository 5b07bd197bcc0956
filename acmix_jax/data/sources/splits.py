"""Names of splits, and splits of data sets that come without any."""

import re

import numpy as np

_NAMES = {
  'train': 'train|training',
  'validation': (
    'validation|validate|valid|val|development|dev|evaluation|eval|holdout'
  ),
  'test': 'test|testing',
}
# What may stand around a name, as in 'test_set' or 'ImagesTrain2017'.
_AROUND = '(?:data|images|imgs|set|split)*'


def split_of(name: str) -> str | None:
  """Which split a name means: 'train', 'validation', 'test', or None.

  Case, digits, spaces and the signs . _ - do not matter: 'Val', 'dev' and
  'validation_set' mean 'validation'; 'bullet train' and 'train[:9%]' mean none.
  """
  if not re.fullmatch(r'[\w .-]*', name):
    return None
  letters = ''.join(re.findall(r'[^\W\d_]', name.casefold()))
  for split, names in _NAMES.items():
    if re.fullmatch(f'{_AROUND}(?:{names}){_AROUND}', letters):
      return split
  return None


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
