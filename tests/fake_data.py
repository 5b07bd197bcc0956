"""Small stand-ins for data sets on disk: archives and folders of images.

The pictures are smooth and random, so that JPEG keeps them almost as they are.
"""

import io
import os
import pathlib
import tarfile
from collections.abc import Sequence

import ml_collections
import numpy as np
from PIL import Image

from acmix_jax.data import sources
from acmix_jax.data.builders import imagenet

# One class for each of the odd files that ImageNet holds, if there are three.
SYNSETS = ('n01440764', 'n01443537', 'n01484850')
ODD_KINDS = ('cmyk', 'png', 'grey')


def make_source(
  name: str,
  directory: str | os.PathLike = '',
  split: str = 'train',
  **fields: object,
) -> sources.Source:
  """The data set `name` in `directory`, as a config asks for it."""
  config = ml_collections.ConfigDict(
    {'name': name, 'dir': str(directory), **fields}
  )
  return sources.make_source(config, split)


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
  """A smooth random image, uint8 [h, w, 3]; `size` is (width, height)."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
  return np.array(Image.fromarray(coarse).resize(size, Image.BICUBIC))


def encode(pixels: np.ndarray, kind: str = 'jpeg', **options: object) -> bytes:
  """Encodes uint8 [h, w, 3].

  Args:
    pixels: the image.
    kind: 'jpeg', 'progressive', 'grey' and 'cmyk' (JPEG files), 'rotated' (a
      JPEG with an EXIF rotation by 90 degrees), 'png', 'rgba', 'palette',
      'grey16' (PNG files).
    **options: options of Pillow's `save`.
  """
  image = Image.fromarray(pixels)
  file_format = 'PNG'
  if kind in ('jpeg', 'progressive', 'grey', 'cmyk', 'rotated'):
    file_format = 'JPEG'
    options.setdefault('quality', 95)
  if kind == 'progressive':
    options['progressive'] = True
  elif kind == 'grey':
    image = image.convert('L')
  elif kind == 'cmyk':
    image = image.convert('CMYK')
  elif kind == 'rotated':
    exif = Image.Exif()
    exif[0x0112] = 6
    options['exif'] = exif
  elif kind == 'rgba':
    image.putalpha(Image.fromarray(pixels[..., 0]))
  elif kind == 'palette':
    image = image.quantize(16)
    options['transparency'] = bytes([0, 128])
  elif kind == 'grey16':
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + 77)
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def write_class_folders(
  directory: str | os.PathLike,
  *,
  classes: Sequence[str] = ('ant', 'bee', 'cat'),
  per_class: int = 4,
  splits: Sequence[str] = ('train', 'val'),
  size: tuple[int, int] = (40, 32),
) -> pathlib.Path:
  """Writes DIR/SPLIT/CLASS/N.jpg, or DIR/CLASS/N.jpg where `splits` is empty.

  All images of a class have nearly the same colour, so that it can be learnt.
  """
  directory = pathlib.Path(directory)
  for number, split in enumerate(splits or ('',)):
    for label, name in enumerate(classes):
      folder = directory / split / name
      folder.mkdir(parents=True)
      for i in range(per_class):
        pixels = picture(1000 * number + i, size) // 4
        pixels[..., label % 3] += 160
        (folder / f'{i:03}.jpg').write_bytes(encode(pixels))
  return directory


def encode_labels(labels: np.ndarray, **options: object) -> bytes:
  """Encodes numbers [h, w] of 8 or 16 bits as a grey PNG file."""
  file = io.BytesIO()
  Image.fromarray(labels).save(file, 'PNG', **options)
  return file.getvalue()


def write_pairs(
  images: str | os.PathLike,
  labels: str | os.PathLike,
  *,
  count: int = 4,
  size: tuple[int, int] = (40, 32),
  numbers: Sequence[int] = (0, 1, 2),
  seed: int = 0,
) -> None:
  """Writes N.jpg into one folder and N.png, its label map, into another.

  The label map has a row of pixels of each number in turn, and the picture
  levels to tell them by. All sizes are a little smaller than `size`.
  """
  for folder in (images, labels):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  for i in range(count):
    width, height = size[0] - i % 3, size[1] - i % 4
    rows = np.resize(np.roll(numbers, i), height).astype(np.uint8)
    label_map = np.repeat(rows[:, None], width, axis=1)
    pixels = picture(seed + i, (width, height)) // 4
    pixels += (label_map[..., None] * 25) % 150
    pathlib.Path(images, f'{i:03}.jpg').write_bytes(encode(pixels))
    pathlib.Path(labels, f'{i:03}.png').write_bytes(encode_labels(label_map))


def write_ade20k(
  directory: str | os.PathLike,
  *,
  train: int = 6,
  validation: int = 3,
  size: tuple[int, int] = (40, 32),
  num_classes: int = 150,
) -> pathlib.Path:
  """Writes DIR/ADEChallengeData2016 as the official archive unpacks.

  The label maps hold 0 and a few of the classes, the first and the last too.
  """
  home = pathlib.Path(directory) / 'ADEChallengeData2016'
  for seed, (split, count) in enumerate(
    (('training', train), ('validation', validation))
  ):
    write_pairs(
      home / 'images' / split,
      home / 'annotations' / split,
      count=count,
      size=size,
      numbers=(0, 1, 2, num_classes),
      seed=1000 * seed,
    )
  lines = [
    f'{i}\t0.0100\t10\t1\tthing {i}, synonym {i}'
    for i in range(1, num_classes + 1)
  ]
  text = '\n'.join(['Idx\tRatio\tTrain\tVal\tName', *lines, ''])
  (home / 'objectInfo150.txt').write_text(text)
  return home


def write_imagenet_tars(
  directory: str | os.PathLike,
  *,
  classes: Sequence[str] = SYNSETS,
  per_class: int = 3,
  validation: int = 4,
  size: tuple[int, int] = (40, 32),
) -> pathlib.Path:
  """Writes the two official archives with a few pictures.

  The first images of the first three classes are a CMYK JPEG, a PNG named
  .JPEG and a grey JPEG. The archive for validation holds the first
  `validation` of the 50,000 names whose true class is one of `classes`.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  with tarfile.open(directory / imagenet.TRAIN_ARCHIVE, 'w') as archive:
    for label, synset in enumerate(classes):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode='w') as class_archive:
        for i in range(per_class):
          odd = i == 0 and label < len(ODD_KINDS)
          kind = ODD_KINDS[label] if odd else 'jpeg'
          pixels = picture(100 * label + i, size)
          _add(class_archive, f'{synset}_{i}.JPEG', encode(pixels, kind))
      _add(archive, f'{synset}.tar', inner.getvalue())
  numbers = [
    i for i, c in enumerate(imagenet.validation_labels(), 1) if c in classes
  ]
  with tarfile.open(directory / imagenet.VALIDATION_ARCHIVE, 'w') as archive:
    for i in numbers[:validation]:
      name = f'ILSVRC2012_val_{i:08}.JPEG'
      _add(archive, name, encode(picture(10_000 + i, size)))
  return directory


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
  member = tarfile.TarInfo(name)
  member.size = len(content)
  archive.addfile(member, io.BytesIO(content))
