r"""Images a second of the training input, from JPEG files to batches.

python -m benchmarks.pipeline [--data_name=folder --data_dir=DIR] [--threads=2]

Reading, decoding, random crop, resize, flip and batching, without a device.
Without --data_dir the files are parts of scikit-learn's two photographs, in the
sizes and of the mean length of ImageNet's. Each row is also measured on copies
whose shorter side is 256 pixels, as `tools.prepare --resize_short=256` makes.
"""

import argparse
import contextlib
import functools
import importlib
import io
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from sklearn import datasets

from acmix_jax.data import pipeline, sources, transforms
from acmix_jax.data.builders import imagenet
from acmix_jax.data.transforms import classification
from benchmarks import harness

# Width and height in pixels; the means are those of ImageNet, 472 x 397.
_SIZES = (
  *[(500, 375)] * 5,
  *[(375, 500)] * 2,
  *[(500, 333), (640, 480), (330, 282)],
)
# Give a mean file of about 110 kB.
_QUALITIES = (98, 99)
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


def make_files(count: int) -> Files:
  """JPEG files of random parts of scikit-learn's photographs."""
  rng = np.random.default_rng(0)
  photographs = [
    Image.fromarray(pixels) for pixels in datasets.load_sample_images().images
  ]
  return Files(
    [
      _make_file(photographs[rng.integers(2)], _SIZES[i % len(_SIZES)], rng)
      for i in range(count)
    ]
  )


def _make_file(photograph, size, rng):
  """A part of half the photograph or more, resized."""
  largest = min(photograph.width / size[0], photograph.height / size[1])
  scale = largest * rng.uniform(0.7, 1)
  width, height = (scale * side for side in size)
  left = rng.uniform(0, photograph.width - width)
  top = rng.uniform(0, photograph.height - height)
  part = photograph.resize(
    size,
    Image.Resampling.BICUBIC,
    box=(left, top, left + width, top + height),
  )
  buffer = io.BytesIO()
  part.save(buffer, 'JPEG', quality=int(rng.choice(_QUALITIES)))
  return buffer.getvalue()


def measure(
  source: sources.Source,
  transform: transforms.Transform,
  threads: int,
  seconds: float,
) -> tuple[float, float]:
  """Images per second of wall time and per second of one core.

  Args:
    source: files to read.
    transform: training transform.
    threads: threads that make batches.
    seconds: time to measure for, once every thread has made a batch.
  """
  batches = pipeline.train_batches(
    source, transform, batch_size=_BATCH_SIZE, seed=0, threads=threads
  )
  with contextlib.closing(batches):
    for _ in range(2 * threads + 1):
      next(batches)
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
      count += len(next(batches)['label'])
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
    choices=('folder', 'imagenet2012'),
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
    default='resnet50_acmix',
    help='whose transforms to use (default: %(default)s)',
  )
  args = parser.parse_args(argv)
  data = importlib.import_module(f'configs.{args.config}').get_config().data
  data.name, data.dir = args.data_name, args.data_dir
  if args.data_dir:
    stored = sources.make_source(data, data.train_split)
  else:
    stored = make_files(args.images)
  files = {'as stored': stored, '256 px copy': make_copy(stored, args.images)}
  transform = classification.train_transform(data)
  runs = {
    (name, threads): functools.partial(
      measure, source, transform, threads, args.turn_seconds
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
