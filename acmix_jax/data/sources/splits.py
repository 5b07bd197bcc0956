"""Names of splits, and splits of data sets that come without any."""

import os
import re

import numpy as np

from acmix_jax.data.sources import listing

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


def find_splits(home: str, otherwise: str = '') -> dict[str, str]:
  """Folder of each split; empty where no folder in `home` is named as one.

  Args:
    home: folder that holds those of the splits, or others.
    otherwise: what else to do about folders of both kinds than to rename or to
      move some, for the message: '; or ...'.

  Raises:
    ValueError: it holds folders of both kinds, or two for one split.
  """
  found, others = {}, []
  for name in listing.subfolders(home):
    split, path = split_of(name), os.path.join(home, name)
    if split is None:
      others.append(name)
    elif split in found and not os.path.samefile(path, found[split]):
      raise ValueError(
        f'{home} holds two folders for the split {split!r}: '
        f'{os.path.basename(found[split])} and {name}. Keep one of them there.'
      )
    else:
      found[split] = path
  if found and others:
    names = ', '.join(sorted(os.path.basename(path) for path in found.values()))
    raise ValueError(
      f'{home} holds folders of splits ({names}) and beside them: '
      f'{", ".join(others[:10])}. Rename these to train, validation or test, '
      f'move them elsewhere or put a dot before their names{otherwise}.'
    )
  return found


def choose(home: str, found: dict[str, str], split: str) -> tuple[str, bool]:
  """Folder of a split, and whether part of it is held out as 'validation'.

  Raises:
    ValueError: there is none, or the same one serves for training.
  """
  if not found:
    return home, True
  if found.keys() == {'train'} and split in ('train', 'validation'):
    return found['train'], True
  name = split
  if split == 'validation' and split not in found:
    name = 'test'
  if name not in found:
    raise ValueError(
      f'{home} has no folder for the split {split!r}; it holds: '
      f'{", ".join(os.path.basename(path) for path in found.values())}.'
    )
  _check_apart(found, name)
  return found[name], False


def _check_apart(found: dict[str, str], name: str) -> None:
  root, train_root = found[name], found.get('train', '')
  if name != 'train' and train_root and os.path.samefile(root, train_root):
    raise ValueError(
      f'{root} and {train_root} are the same folder: the images that are '
      'trained on would be evaluated.'
    )


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
