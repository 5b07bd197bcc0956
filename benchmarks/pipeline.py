r"""Images a second of the training input, from JPEG files to batches.

python -m benchmarks.pipeline [--data_name=folder --data_dir=DIR] [--threads=2]

Reading, decoding, random crop, resize, flip and batching, without a device.
Without --data_dir the files are parts of scikit-learn's two photographs, in the
sizes and of the mean length of ImageNet's. Each row is also measured on copies
whose shorter side is 256 pixels, as `tools.prepare --resize_short=256` makes.

With --config=configs/ade20k_upernet.py:swin_tiny the files have sizes and
lengths as ADE20K's and label maps beside them, and become the crops that
segmenters are trained on; with configs/coco_mask_rcnn.py:resnet50 as COCO's,
with polygons around objects, and become what detectors are trained on.
"""

import argparse
import contextlib
import functools
import io
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from PIL import Image
from sklearn import datasets

from acmix_jax.data import (
  decode,
  label_maps,
  pipeline,
  sources,
  transforms,
)
from acmix_jax.data.builders import imagenet
from acmix_jax.data.sources import coco_format, label_files
from acmix_jax.data.transforms import classification, detection, segmentation
from acmix_jax.tools import config_file
from benchmarks import harness

# Width and height in pixels; the means are those of ImageNet, 472 x 397.
_SIZES = (
  *[(500, 375)] * 5,
  *[(375, 500)] * 2,
  *[(500, 333), (640, 480), (330, 282)],
)
# Give a mean file of about 110 kB.
_QUALITIES = (98, 99)
# The shorter side of most images of ADE20K is 512; 40 and 4 kB are the means of
# its images and label maps.
_PAIR_SIZES = (*[(683, 512)] * 7, (512, 683), (512, 683), (256, 256))
_PAIR_QUALITIES = (60, 75)
_PATCHES = (16, 12)  # Across and down a label map.
# Most images of COCO have 640 x 480 pixels; 155 kB is the mean of its files.
# Mean objects of an image, and corners of each.
_OBJECT_SIZES = (*[(640, 480)] * 6, *[(480, 640)] * 3, (640, 427))
_OBJECT_QUALITIES = (97, 98)
_OBJECTS, _CORNERS = 7, 24
_BATCH_SIZE = 32
_HEADER = (
  'files',
  'mean kB',
  'threads',
  'images/s',
  'images/s a core',
  'this / stored',
)


class Files(sources.LabelledImages):
  """A source of encoded images in memory."""

  class_names = ('photograph',)

  def __init__(self, images: Sequence[bytes]):
    self._images = images

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image, label = self._images[index], np.int32(0)
    return {'image': image, 'label': label, 'name': f'file {index}'}


class Pairs(sources.LabelFiles):
  """A source of encoded images and label maps in memory."""

  class_names = tuple(map(str, range(150)))
  convention = label_maps.Convention(150, zero_is_ignored=True)

  def __init__(self, files: Sequence[tuple[bytes, bytes]]):
    self._files = files

  def __len__(self) -> int:
    return len(self._files)

  def read(self, index: int) -> label_files.Files:
    """See `sources.LabelFiles`."""
    image, label = self._files[index]
    return label_files.Files(image, label, f'image {index}', f'label {index}')

  def read_size(self, index: int) -> tuple[int, int]:
    """See `sources.LabelFiles`."""
    return decode.read_size(io.BytesIO(self._files[index][0]))


def make_files(count: int) -> Files:
  """JPEG files of random parts of scikit-learn's photographs."""
  rng = np.random.default_rng(0)
  parts = (_part(_SIZES[i % len(_SIZES)], rng) for i in range(count))
  return Files([_encode(part, rng.choice(_QUALITIES)) for part in parts])


def make_pairs(count: int) -> Pairs:
  """The same with PNG files of label maps, patches of one class each."""
  rng = np.random.default_rng(0)
  files = []
  for i in range(count):
    part = _part(_PAIR_SIZES[i % len(_PAIR_SIZES)], rng)
    patches = part.convert('L').resize(_PATCHES).point(lambda x: x * 150 // 255)
    buffer = io.BytesIO()
    patches.resize(part.size, Image.Resampling.NEAREST).save(buffer, 'PNG')
    image = _encode(part, rng.choice(_PAIR_QUALITIES))
    files.append((image, buffer.getvalue()))
  return Pairs(files)


class Encoded(NamedTuple):
  """Encoded images in memory, see `sources.coco.Images`."""

  files: Sequence[bytes]
  origin = 'made'

  def read(self, index: int) -> bytes:
    """The content of a file."""
    return self.files[index]

  def name(self, index: int) -> str:
    """Name of an image."""
    return f'image {index}'


def make_objects(count: int) -> sources.Coco:
  """The same with polygons around objects of all sizes."""
  rng = np.random.default_rng(0)
  files, images, annotations = [], [], []
  angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
  for i in range(count):
    size = _OBJECT_SIZES[i % len(_OBJECT_SIZES)]
    files.append(_encode(_part(size, rng), rng.choice(_OBJECT_QUALITIES)))
    named = {'id': i, 'file_name': f'{i}.jpg'}
    images.append(named | {'width': size[0], 'height': size[1]})
    for _ in range(_OBJECTS):
      sides = np.exp(rng.uniform(np.log(16), np.log(min(size) / 2), 2))
      corner = rng.uniform(0, size - sides)
      circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
      radii = rng.uniform(0.7, 1, (_CORNERS, 1))
      polygon = corner + sides * (1 + radii * circle) / 2
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': i,
          'category_id': int(rng.integers(80)),
          'bbox': [*corner.tolist(), *sides.tolist()],
          'area': float(sides.prod() / 2),
          'iscrowd': 0,
          'segmentation': [polygon.ravel().tolist()],
        }
      )
  categories = [{'id': label, 'name': str(label)} for label in range(80)]
  content = dict(images=images, annotations=annotations, categories=categories)
  return sources.Coco(
    coco_format.from_coco(content, 'made'), Encoded(files), training=True
  )


# What reads like the data of a task, and the transform of its training.
_TASKS = {
  'classification': (make_files, classification.train_transform),
  'segmentation': (make_pairs, segmentation.train_transform),
  'detection': (make_objects, detection.train_transform),
}


@functools.cache
def _photographs() -> list[Image.Image]:
  return [
    Image.fromarray(pixels) for pixels in datasets.load_sample_images().images
  ]


def _part(size, rng):
  """A part of half a photograph or more, resized."""
  photograph = _photographs()[rng.integers(2)]
  largest = min(photograph.width / size[0], photograph.height / size[1])
  scale = largest * rng.uniform(0.7, 1)
  width, height = (scale * side for side in size)
  left = rng.uniform(0, photograph.width - width)
  top = rng.uniform(0, photograph.height - height)
  return photograph.resize(
    size,
    Image.Resampling.BICUBIC,
    box=(left, top, left + width, top + height),
  )


def _encode(image, quality):
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', quality=int(quality))
  return buffer.getvalue()


def measure(
  source: sources.Source,
  transform: transforms.Transform,
  batch_size: int,
  threads: int,
  seconds: float,
) -> tuple[float, float]:
  """Images per second of wall time and per second of one core.

  Args:
    source: files to read.
    transform: training transform.
    batch_size: images of a batch.
    threads: threads that make batches.
    seconds: time to measure for, once every thread has made a batch.
  """
  batches = pipeline.train_batches(
    source, transform, batch_size=batch_size, seed=0, threads=threads
  )
  with contextlib.closing(batches):
    for _ in range(2 * threads + 1):
      next(batches)
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while not count or time.perf_counter() - wall < seconds:
      count += len(next(batches)['mask'])
    elapsed = time.perf_counter() - wall
    return count / elapsed, count / (time.process_time() - cpu)


def make_copy(source: sources.Source, count: int) -> Files:
  """The first files with shorter sides of 256 pixels."""
  examples = [source[i] for i in range(min(count, len(source)))]
  return Files(
    [imagenet.resize_file(x['name'], x['image'], 256) for x in examples]
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table and writes the record."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.pipeline', description=__doc__.splitlines()[0]
  )
  harness.add_arguments(parser)
  parser.set_defaults(turn_seconds=3.0)
  parser.add_argument(
    '--data_dir', default='', metavar='DIR', help='images to use instead'
  )
  parser.add_argument(
    '--data_name',
    choices=('folder', 'imagenet2012', 'ade20k', 'coco'),
    default='folder',
    help='how they are stored (default: %(default)s)',
  )
  parser.add_argument(
    '--images',
    type=int,
    default=200,
    help='files to make or to copy (default: %(default)s)',
  )
  parser.add_argument(
    '--threads',
    type=harness.list_of(int),
    default='1,2,4',
    help='numbers of threads (default: %(default)s)',
  )
  parser.add_argument(
    '--config',
    default='configs/resnet50_acmix.py',
    metavar='FILE[:BACKBONE]',
    help='whose transforms to use (default: %(default)s)',
  )
  args = parser.parse_args(argv)
  config = config_file.load(args.config)
  files = _files(config, args)
  transform = _TASKS[config.task][1](config.data)
  batch_size = min(_BATCH_SIZE, config.train.batch_size)
  runs = {
    (name, threads): functools.partial(
      measure, source, transform, batch_size, threads, args.turn_seconds
    )
    for threads in args.threads
    for name, source in files.items()
  }
  rates = harness.interleave(runs, args.rounds)
  rows = [
    _row(name, threads, rates, _mean_kb(files[name], args.images))
    for name, threads in rates
  ]
  harness.report(args, _HEADER, rows, [])
  return 0


def _files(
  config: ml_collections.ConfigDict, args: argparse.Namespace
) -> dict[str, sources.Source]:
  """The images to read, by what the table calls them."""
  data = config.data
  if args.data_dir:
    data.name, data.dir = args.data_name, args.data_dir
    stored = sources.make_source(data, data.train_split)
  else:
    stored = _TASKS[config.task][0](args.images)
  files = {'as stored': stored}
  if config.task == 'classification':
    files['256 px copy'] = make_copy(stored, args.images)
  return files


def _mean_kb(source, count):
  count = min(count, len(source))
  return statistics.mean(len(source[i]['image']) for i in range(count)) / 1e3


def _row(name, threads, rates, mean_kb):
  wall, core = zip(*rates[name, threads], strict=True)
  _, stored = zip(*rates['as stored', threads], strict=True)
  return {
    'files': name,
    'mean kB': mean_kb,
    'threads': threads,
    'images/s': statistics.median(wall),
    'images/s a core': statistics.median(core),
    'this / stored': harness.ratio(core, stored),
    'images/s by round': wall,
    'images/s a core by round': core,
  }


if __name__ == '__main__':
  sys.exit(main())
