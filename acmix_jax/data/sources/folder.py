"""Image files in one folder for each class."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from acmix_jax.data.sources import source, splits

IMAGE_SUFFIXES = (
  '.jpg',
  '.jpeg',
  '.png',
  '.bmp',
  '.gif',
  '.webp',
  '.tif',
  '.tiff',
)
# Where the split 'validation' may lie; the first folder that exists is taken.
_VALIDATION_FOLDERS = ('validation', 'val', 'test')


class Folder(source.LabelledImages):
  """Image files in one folder for each class.

  Either DIR/train/CLASS/... and DIR/validation/CLASS/... (or val, or test;
  the folder may also be named by the split itself), or DIR/train/CLASS/... or
  DIR/CLASS/... alone: of each class, in the order of the file names, the first
  image and every tenth after it are then held out as 'validation'. Classes are
  numbered in the order of their folders' names. Files may lie in subfolders of
  the class; hidden files and files of other types are passed over.
  """

  def __init__(self, directory: str, split: str):
    """Lists the files.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: no class folders, no images, too few images of a class to hold
        one out, or another list of classes than the training split has.
    """
    if not directory:
      raise ValueError(
        "data.dir is empty; data 'folder' needs the path of a folder that "
        'holds train/CLASS/IMAGE or CLASS/IMAGE.'
      )
    root = os.path.abspath(os.path.expanduser(directory))
    if not os.path.isdir(root):
      raise FileNotFoundError(
        f'data.dir={root} is no folder; expected a folder that holds '
        'train/CLASS/IMAGE or CLASS/IMAGE.'
      )
    self._root, hold_out = _split_folder(root, split)
    self.class_names = _subfolders(self._root)
    if not hold_out:
      train_root = os.path.join(root, 'train')
      _check_classes(self._root, self.class_names, _subfolders(train_root))
    if not self.class_names:
      raise ValueError(
        f'{self._root} holds no folders; expected one for each class.'
      )
    self._files, labels = [], []
    for label, name in enumerate(self.class_names):
      files = _image_files(self._root, name)
      if not files:
        raise ValueError(
          f'{os.path.join(self._root, name)} holds no image; expected files '
          f'that end in {", ".join(IMAGE_SUFFIXES)}.'
        )
      self._files.extend(files)
      labels.extend([label] * len(files))
    self._labels = np.array(labels, np.int32)
    if hold_out:
      self._hold_out(split)

  def _hold_out(self, split: str) -> None:
    splits.check_split(split, 'folder', f' without {self._root}/train')
    counts = np.bincount(self._labels)
    if counts.min() < 2:
      raise ValueError(
        f'{os.path.join(self._root, self.class_names[counts.argmin()])} holds '
        'a single image, so none can be held out: add images, or make train/ '
        'and validation/ folders.'
      )
    indices = splits.split_indices(self._labels, split, every=10)
    self._files = [self._files[index] for index in indices]
    self._labels = self._labels[indices]

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = os.path.join(self._root, self._files[index])
    with open(path, 'rb') as file:
      image = file.read()
    return {'image': image, 'label': self._labels[index], 'name': path}


def _split_folder(root: str, split: str) -> tuple[str, bool]:
  """Folder with the images of a split, and whether 'validation' shares it."""
  folders = _subfolders(root)
  if 'train' not in folders:
    return root, True
  validation = [name for name in _VALIDATION_FOLDERS if name in folders]
  if not validation and split in ('train', 'validation'):
    return os.path.join(root, 'train'), True
  name = validation[0] if split == 'validation' else split
  if name not in folders:
    raise ValueError(
      f'{root} has no folder for the split {split!r}; it holds: '
      f'{", ".join(folders)}.'
    )
  return os.path.join(root, name), False


def _check_classes(
  path: str, names: Sequence[str], train_names: Sequence[str]
) -> None:
  if names != train_names:
    missing = sorted(set(train_names) - set(names))
    extra = sorted(set(names) - set(train_names))
    raise ValueError(
      f'{path} must hold the same class folders as the training split; '
      f'missing: {", ".join(missing[:10]) or "none"}; '
      f'unexpected: {", ".join(extra[:10]) or "none"}.'
    )


def _subfolders(path: str) -> tuple[str, ...]:
  with os.scandir(path) as entries:
    return tuple(
      sorted(e.name for e in entries if e.is_dir() and e.name[0] != '.')
    )


def _image_files(root: str, folder: str) -> list[str]:
  """Sorted paths, relative to `root`, of the images anywhere in `folder`."""
  files = []
  for path, _, names in os.walk(os.path.join(root, folder), followlinks=True):
    files.extend(
      os.path.relpath(os.path.join(path, name), root)
      for name in names
      if name[0] != '.' and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )
  return sorted(files)
