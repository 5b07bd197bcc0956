"""Random access to labelled images, before decoding.

A source opens its files when it is first read and can be pickled, so that it
can be sent to worker processes. scikit-learn and TFDS take seconds to import,
which every worker would spend again: only the sources that need them do.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import ml_collections
import numpy as np
from etils import epath

from acmix_jax import lookup
from acmix_jax.data import decode

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


class Source(Protocol):
  """A labelled set of images with random access.

  Attributes:
    class_names: names of the classes; a label is an index into them.
  """

  class_names: tuple[str, ...]

  @property
  def num_classes(self) -> int:
    """Number of classes."""

  def __len__(self) -> int:
    """Number of images."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads one example.

    Returns:
      `image`: the bytes of an image file, or uint8 RGB [h, w, 3];
      `label`: int;
      `name`: a file name, or whatever leads a person to the image.

    Raises:
      decode.DecodeError, OSError: the image cannot be read.
    """


def make_source(
  config: ml_collections.ConfigDict, split: str
) -> 'Digits | Folder | ImageNet':
  """Opens one split of the data set `config.name`, stored in `config.dir`.

  Args:
    config: `config.data` of an experiment.
    split: 'train' or 'validation'; 'imagenet2012' also takes parts in the
      notation of TFDS ('train[:99%]'), 'folder' the name of any subfolder.

  Raises:
    KeyError: no data set has this name.
    ValueError: the split or the content of `config.dir` is not as expected.
    FileNotFoundError: nothing is at `config.dir`.
  """
  if config.name == 'digits':
    return Digits(split)
  if config.name == 'folder':
    return Folder(config.dir, split)
  if config.name == 'imagenet2012':
    return ImageNet(config.dir, split)
  known = ('digits', 'folder', 'imagenet2012')
  raise lookup.UnknownName(lookup.unknown('data.name', config.name, known))


class Digits:
  """Handwritten digits, 8 x 8 pixels, part of the scikit-learn package.

  1,433 images for training and 364 for validation: of each class the first and
  every fifth after it are held out. Both hold digits of the same writers.
  """

  class_names = tuple(str(digit) for digit in range(10))
  num_classes = 10

  def __init__(self, split: str):
    _check_split(split, 'digits')
    from sklearn import datasets

    digits = datasets.load_digits()
    indices = _split_indices(digits.target, split, every=5)
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
      'label': int(self._labels[index]),
      'name': self._names[index],
    }


class Folder:
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
    _check_split(split, 'folder', f' without {self._root}/train')
    counts = np.bincount(self._labels)
    if counts.min() < 2:
      raise ValueError(
        f'{os.path.join(self._root, self.class_names[counts.argmin()])} holds '
        'a single image, so none can be held out: add images, or make train/ '
        'and validation/ folders.'
      )
    indices = _split_indices(self._labels, split, every=10)
    self._files = [self._files[index] for index in indices]
    self._labels = self._labels[indices]

  @property
  def num_classes(self) -> int:
    """Number of class folders."""
    return len(self.class_names)

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = os.path.join(self._root, self._files[index])
    with open(path, 'rb') as file:
      image = file.read()
    return {'image': image, 'label': int(self._labels[index]), 'name': path}


class ImageNet:
  """ImageNet-1k as TFDS stores it, read without TensorFlow.

  Reads what `acmix_jax.tools.prepare` or TFDS's own `imagenet2012` wrote, in
  array_record format.
  """

  def __init__(self, directory: str, split: str):
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

  @property
  def num_classes(self) -> int:
    """Number of classes, 1000."""
    return len(self.class_names)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      record = self._records[index]
    except RuntimeError as error:  # A damaged part of an array_record file.
      raise decode.DecodeError(
        f'record {index} of {self._split} in {self._directory}: {error}'
      ) from error
    return {
      'image': record['image'],
      'label': int(record['label']),
      'name': record['file_name'].decode(),
    }


def _check_split(split: str, name: str, note: str = '') -> None:
  if split not in ('train', 'validation'):
    raise ValueError(
      f"Data {name!r}{note} has the splits 'train' and 'validation', "
      f'not {split!r}.'
    )


def _split_indices(labels: np.ndarray, split: str, every: int) -> np.ndarray:
  """Indices of a split that holds out one in `every` of each class."""
  held_out = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    held_out[np.flatnonzero(labels == label)[::every]] = True
  return np.flatnonzero(held_out == (split == 'validation'))


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


def _find_prepared(directory: str, name: str) -> epath.Path:
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
