"""Image files in one folder for each class."""

import os
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from acmix_jax.data.sources import files, listing, source, splits


class Folder(source.LabelledImages):
  """Image files in one folder for each class.

  Either DIR/train/CLASS/... and DIR/validation/CLASS/... (or test; of any of
  the usual names in any case, see `splits.split_of`), or DIR/train/CLASS/... or
  DIR/CLASS/... alone: of each class, in the order of the file names, the first
  image and every tenth after it are then held out as 'validation'. Without a
  folder for it, 'validation' is that for 'test'.

  Classes are numbered in the order of their folders' names, in Unicode's normal
  form NFC. Files may lie in subfolders of the class. What is hidden, left by
  other programs, no regular file or of no suffix that Pillow reads is passed
  over and counted in the log; see `listing.Listing`, also about links.
  """

  def __init__(self, directory: str | os.PathLike, split: str):
    """Lists the files.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: folders that may or may not be splits, two for one split, no
        class folders, no images, too few images of a class to hold one out, or
        another list of classes than the training split has.
    """
    if not directory:
      raise ValueError(
        "data.dir is empty; data 'folder' needs the path of a folder that "
        'holds train/CLASS/IMAGE or CLASS/IMAGE.'
      )
    home = os.path.abspath(os.path.expanduser(directory))
    if not os.path.isdir(home):
      raise FileNotFoundError(
        f'data.dir={home} is no folder; expected a folder that holds '
        'train/CLASS/IMAGE or CLASS/IMAGE.'
      )
    split = splits.split_of(split) or split
    found = splits.find_splits(
      home,
      '; or, if all are classes, move all of them into '
      f'{os.path.join(home, "train")}',
    )
    self._root, hold_out = splits.choose(home, found, split)
    folders = _class_folders(self._root)
    self.class_names = tuple(folders)
    if not hold_out and 'train' in found:
      _check_against_train(self._root, folders, found['train'])
    listed = listing.Listing(self._root, list(folders.values()), home)
    listed.log_passed_over()
    for name, members in zip(folders.values(), listed.files, strict=True):
      _check_files(os.path.join(self._root, name), members)
    self._files = [file for members in listed.files for file in members]
    counts = [len(members) for members in listed.files]
    self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    self.origin = self._root
    if hold_out:
      self._hold_out(split, counts)

  def _hold_out(self, split: str, counts: Sequence[int]) -> None:
    splits.check_split(split, 'folder', f' without {self._root}/train')
    if min(counts) < 2:
      name = self.class_names[counts.index(min(counts))]
      raise ValueError(
        f'{os.path.join(self._root, name)} holds a single image, so none can '
        'be held out: add images, or make train/ and validation/ folders.'
      )
    indices = splits.split_indices(self._labels, split, every=10)
    self._files = [self._files[index] for index in indices]
    self._labels = self._labels[indices]
    self.origin += ', where each tenth image of a class is held out'

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = os.path.join(self._root, self._files[index])
    return {
      'image': files.read(path),
      'label': self._labels[index],
      'name': path,
    }


def _class_folders(root: str) -> dict[str, str]:
  """Folders of the classes by the names of these, in their order."""
  folders = {}
  for folder in listing.subfolders(root):
    name = unicodedata.normalize('NFC', folder)
    if name in folders:
      raise ValueError(
        f'{root} holds two folders whose names differ only in their Unicode '
        f'form: {folders[name]!a} and {folder!a}. Make them one.'
      )
    folders[name] = folder
  if not folders:
    raise ValueError(f'{root} holds no folders; expected one for each class.')
  if all(splits.split_of(name) for name in folders):
    raise ValueError(
      f'{root} holds {", ".join(folders)}, which look like splits, not like '
      'classes; set data.dir to the folder that holds the splits.'
    )
  return dict(sorted(folders.items()))


def _check_against_train(
  root: str, names: Collection[str], train_root: str
) -> None:
  if root == train_root:
    return
  train_names = _class_folders(train_root)
  missing = sorted(set(train_names) - set(names))
  extra = sorted(set(names) - set(train_names))
  if missing or extra:
    raise ValueError(
      f'{root} must hold the same class folders as the training split '
      f'{train_root}; missing: {", ".join(missing[:10]) or "none"}; '
      f'unexpected: {", ".join(extra[:10]) or "none"}.'
    )


def _check_files(path: str, files: Sequence[str]) -> None:
  """Raises a ValueError where a class has no images, or splits of its own."""
  if not files:
    raise ValueError(
      f'{path} holds no image; expected files of a type that Pillow reads, '
      'such as .jpg or .png.'
    )
  inside = {file.split(os.sep)[1] for file in files if file.count(os.sep) > 1}
  kinds = {splits.split_of(name) for name in inside} - {None}
  if 'train' in kinds and len(kinds) > 1:
    raise ValueError(
      f'{path} is taken for a class, but holds splits: '
      f'{", ".join(sorted(filter(splits.split_of, inside)))}. Set data.dir to '
      'it, or put the splits above the classes: train/CLASS, validation/CLASS.'
    )
