"""Which files of a folder are images, and which are passed over."""

import collections
import functools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

from PIL import Image

logger = logging.getLogger(__name__)

# What notebooks, archives, storage boxes and systems leave, besides names that
# begin with a dot or a tilde; in lower case.
_LITTER = frozenset(
  (
    '__macosx',
    '__pycache__',
    '@eadir',
    '@recycle',
    '#recycle',
    '#snapshot',
    '$recycle.bin',
    'lost+found',
    'system volume information',
    'thumbs.db',
    'desktop.ini',
  )
)
# Formats that Pillow recognises and leaves to other programs to draw.
_UNDRAWN = frozenset(('BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'))


def is_litter(name: str) -> bool:
  """Whether a file or folder is hidden, or left by another program."""
  return name[0] in '.~' or name.lower() in _LITTER


@functools.cache
def image_suffixes() -> frozenset[str]:
  """Suffixes of the image formats that Pillow reads, '.jpg' and so on."""
  return frozenset(
    suffix
    for suffix, name in Image.registered_extensions().items()
    if name in Image.OPEN and name not in _UNDRAWN
  )


def subfolders(path: str) -> list[str]:
  """Sorted names of the folders in a folder and of links to any, no litter."""
  with os.scandir(path) as entries:
    return sorted(
      entry.name
      for entry in entries
      if not is_litter(entry.name) and os.path.isdir(entry.path)
    )


class Listing:
  """Image files anywhere in the folders of a split, one folder for each class.

  Links to files are files. Links to folders within a class are followed, but
  each folder is entered once: never one that is part of the data set, or holds
  it, nor one to which another link led.

  Attributes:
    files: sorted paths of each class, relative to the split.
    passed_over: numbers of files and folders that are not listed, by reason.
  """

  def __init__(self, root: str, folders: Sequence[str], home: str):
    """Lists the files.

    Args:
      root: folder of the split.
      folders: names of its class folders.
      home: folder of the data set, with all its splits.

    Raises:
      ValueError: a class folder is, or holds, another folder of the data set.
      OSError: a folder cannot be read.
    """
    self._root = root
    self.passed_over = collections.Counter()
    targets = [os.path.realpath(os.path.join(root, name)) for name in folders]
    self._own = {os.path.realpath(home), os.path.realpath(root), *targets}
    self._above = {folder for own in self._own for folder in _parents(own)}
    _check_apart(root, folders, targets, self._above)
    self._entered = set(targets)
    with os.scandir(root) as entries:
      for entry in entries:
        if not is_litter(entry.name) and self._is_image(entry):
          self.passed_over['images beside the listed folders'] += 1
    self.files = [
      sorted(self._walk(folder, target))
      for folder, target in zip(folders, targets, strict=True)
    ]

  def log_passed_over(self) -> None:
    """Says in the log what is not listed."""
    if self.passed_over:
      counts = (
        f'{reason} ({count})'
        for reason, count in sorted(self.passed_over.items())
      )
      logger.info('Passed over in %s: %s.', self._root, ', '.join(counts))

  def _walk(self, folder: str, real: str) -> Iterator[str]:
    """Yields the images in a folder, whose path without links is `real`."""
    with os.scandir(os.path.join(self._root, folder)) as entries:
      # The order of the disk must not decide which link comes first.
      entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
      path = os.path.join(folder, entry.name)
      if is_litter(entry.name):
        self.passed_over['hidden or left by other programs'] += 1
      elif _is_folder(entry):
        target = os.path.join(real, entry.name)
        if entry.is_symlink():
          target = os.path.realpath(entry.path)
        if self._enter(target, entry.is_symlink()):
          yield from self._walk(path, target)
        else:
          self.passed_over['links to folders that are listed already'] += 1
      elif self._is_image(entry):
        yield path

  def _enter(self, target: str, linked: bool) -> bool:
    """Whether a folder may be entered; notes that it was."""
    if linked and (
      target in self._own
      or target in self._above
      or not self._own.isdisjoint(_parents(target))
    ):
      return False
    first = target not in self._entered
    self._entered.add(target)
    return first

  def _is_image(self, entry: os.DirEntry) -> bool:
    """Whether a file is an image by its kind and name; counts other files."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if _is_folder(entry):
      return False
    if not os.path.isfile(entry) if entry.is_symlink() else not entry.is_file():
      # Opening a FIFO would wait for ever.
      self.passed_over['no regular files'] += 1
    elif suffix not in image_suffixes():
      reason = f'of suffix {suffix}' if suffix else 'without a suffix'
      self.passed_over[reason] += 1
    else:
      return True
    return False


def _is_folder(entry: os.DirEntry) -> bool:
  # DirEntry raises an error at links to themselves.
  return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _parents(path: str) -> list[str]:
  return [str(folder) for folder in pathlib.PurePath(path).parents]


def _check_apart(root, folders, targets, above):
  counts = collections.Counter(targets)
  for name, target in zip(folders, targets, strict=True):
    if counts[target] > 1 or target in above:
      raise ValueError(
        f'{os.path.join(root, name)} is, or holds, another folder of the data '
        f'set: it leads to {target}. Each class needs a folder of its own.'
      )
