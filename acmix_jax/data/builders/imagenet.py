"""ImageNet-1k from the two official archives into TFDS's storage.

TFDS's own builder of this name needs TensorFlow to write; this one does not,
and what it writes can be read by TFDS anywhere.
"""

import functools
import io
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent import futures
from importlib import resources
from typing import IO, Any

import tensorflow_datasets as tfds
from PIL import Image

from acmix_jax.data import decode

logger = logging.getLogger(__name__)

TRAIN_ARCHIVE = 'ILSVRC2012_img_train.tar'
VALIDATION_ARCHIVE = 'ILSVRC2012_img_val.tar'

_JPEG_QUALITY = 95
_CHUNK = 512  # Images in memory at once while resizing, about 60 MB.


def class_names() -> list[str]:
  """The 1000 WordNet ids ('n01440764', ...) in the order of the labels."""
  return _tfds_list('labels.txt')


def validation_labels() -> list[str]:
  """WordNet ids of validation images 1 to 50,000, the official ground truth."""
  return _tfds_list('validation_labels.txt')


def _tfds_list(name: str) -> list[str]:
  folder = resources.files(tfds) / 'datasets' / 'imagenet2012'
  return (folder / name).read_text().split()


class Imagenet2012(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,
):
  """Writes the archives' files unchanged, or made smaller.

  Unchanged means that the 22 CMYK files, the PNG named .JPEG and the files that
  carry a rotation stay what they are; `decode.decode` reads them. (TFDS's
  builder encodes the first two kinds anew.)
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Train and validation.'}

  def __init__(self, *, source: str, resize_short: int = 0, **kwargs):
    """Names the archives.

    Args:
      source: folder with the two archives.
      resize_short: length in pixels to which the shorter side is reduced, as
        JPEG of quality 95; smaller images stay unchanged. 0: all do.
      **kwargs: arguments of `tfds.core.GeneratorBasedBuilder`, among them
        `data_dir`.

    Raises:
      FileNotFoundError: an archive is missing.
      ValueError: `resize_short` is negative.
    """
    if resize_short < 0:
      raise ValueError(f'resize_short={resize_short} is negative.')
    self._archives = {
      'train': os.path.join(source, TRAIN_ARCHIVE),
      'validation': os.path.join(source, VALIDATION_ARCHIVE),
    }
    missing = [p for p in self._archives.values() if not os.path.isfile(p)]
    if missing:
      raise FileNotFoundError(
        f'Not found: {", ".join(missing)}. The archives come from '
        'https://image-net.org/download-images, after registration.'
      )
    self._resize_short = resize_short
    config = None
    if resize_short:
      config = tfds.core.BuilderConfig(
        name=f'short_{resize_short}',
        description=f'Shorter sides are at most {resize_short} pixels.',
      )
    super().__init__(config=config, file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description='ImageNet-1k (ILSVRC 2012).',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'label': tfds.features.ClassLabel(names=class_names()),
          'file_name': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://image-net.org/',
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager
    readers = {'train': _train_files, 'validation': _validation_files}
    return {
      split: self._generate_examples(path, readers[split](path))
      for split, path in self._archives.items()
    }

  def _generate_examples(
    self, path: str, files: Iterable[tuple[str, str, bytes]]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
      for name, label, image in self._resized(files):
        yield name, {'image': image, 'label': label, 'file_name': name}
    except tarfile.TarError as error:
      raise ValueError(f'{path} is damaged or cut short: {error}') from error

  def _resized(
    self, files: Iterable[tuple[str, str, bytes]]
  ) -> Iterator[tuple[str, str, bytes]]:
    if not self._resize_short:
      yield from files
      return
    resize = functools.partial(resize_file, short=self._resize_short)
    files = iter(files)
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      while chunk := list(itertools.islice(files, _CHUNK)):
        names, labels, images = zip(*chunk, strict=True)
        resized = pool.map(resize, names, images)
        yield from zip(names, labels, resized, strict=True)


def resize_file(name: str, image: bytes, short: int) -> bytes:
  """Reduces the shorter side of an image file to `short` pixels.

  Returns:
    A JPEG file of quality 95, resized by Pillow (bicubic, antialiased), or
    `image` itself where its shorter side is no longer than that or where it is
    damaged, which is logged.
  """
  try:
    pixels = decode.decode(image)
  except decode.DecodeError as error:
    logger.warning('%s is stored as it is, damaged: %s', name, error)
    return image
  height, width = pixels.shape[:2]
  scale = short / min(height, width)
  if scale >= 1:
    return image
  size = (round(width * scale), round(height * scale))
  buffer = io.BytesIO()
  resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
  resized.save(buffer, 'JPEG', quality=_JPEG_QUALITY)
  return buffer.getvalue()


def _train_files(path: str) -> Iterator[tuple[str, str, bytes]]:
  """Yields (file name, WordNet id, content) from the archive of archives."""
  known = set(class_names())
  for archive_name, archive in _members(path):
    label, suffix = os.path.splitext(archive_name)
    if suffix != '.tar' or label not in known:
      raise ValueError(
        f'{path} holds {archive_name}; expected one archive for each class, '
        'named like n01440764.tar.'
      )
    for name, image in _members(file=archive):
      yield name, label, image.read()


def _validation_files(path: str) -> Iterator[tuple[str, str, bytes]]:
  """Yields (file name, WordNet id, content) from the flat archive."""
  labels = validation_labels()
  for name, image in _members(path):
    match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
    if not match or not 1 <= int(match[1]) <= len(labels):
      raise ValueError(
        f'{path} holds {name}; expected ILSVRC2012_val_00000001.JPEG to '
        f'ILSVRC2012_val_{len(labels):08}.JPEG.'
      )
    yield name, labels[int(match[1]) - 1], image.read()


def _members(
  path: str | None = None, file: IO[bytes] | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
  with tarfile.open(path, fileobj=file) as archive:
    for member in archive:
      if member.isfile():
        yield os.path.basename(member.name), archive.extractfile(member)
