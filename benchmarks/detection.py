r"""NMS and RoIAlign against torchvision's kernels.

python -m benchmarks.detection [--torch_python=FILE] [--boxes=2000] [--rois=512]

NMS takes proposals that crowd around objects. RoIAlign takes boxes of all sizes
on a pyramid of one image, 7 x 7 bins of 256 channels, by the rule of levels and
with the number of samples of mmdetection; forward, and forward with the
gradient of the maps.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from acmix_jax.ops import nms, roi_align
from benchmarks import harness

_STRIDES = (4, 8, 16, 32)
_FINEST_SIDE = 56.0
_OUTPUT_SIZE = 7
_THRESHOLD = 0.7
_HEADER = ('work', 'contestant', 'ms', 'torchvision / this', 'temporary MiB')


def make_boxes(number: int, height: int, width: int) -> np.ndarray:
  """Boxes of 16 px to half the image around a tenth as many objects, [n, 4]."""
  rng = np.random.default_rng(0)
  objects = -(-number // 10)
  largest = min(height, width) / 2
  sides = np.exp(rng.uniform(np.log(16), np.log(largest), (objects, 1)))
  sides = sides * np.exp(rng.uniform(-0.35, 0.35, (objects, 2)) * (1, -1))
  centres = rng.uniform(0, (width, height), (objects, 2))
  index = rng.integers(objects, size=number)
  sides = sides[index] * np.exp(0.2 * rng.standard_normal((number, 2)))
  centres = centres[index] + 0.1 * sides * rng.standard_normal((number, 2))
  corners = [centres - sides / 2, centres + sides / 2]
  limits = (width, height, width, height)
  return np.clip(np.concatenate(corners, axis=1), 0, limits).round(1)


def make_work(
  work: str, args: argparse.Namespace
) -> tuple[Any, list[Any], dict[str, Any]]:
  """A function, its arguments, and what is asked of `torch_peers`.

  Args:
    work: Name of `_WORKS`.
    args: Parsed options.
  """
  height, width = args.size
  boxes = make_boxes(args.boxes if work == 'nms' else args.rois, height, width)
  request = {'work': work, 'boxes': boxes.tolist(), 'dtype': 'float32'}
  boxes = jnp.asarray(boxes[None], jnp.float32)
  if work == 'nms':
    scores = np.random.default_rng(1).permutation(args.boxes)
    request |= {'scores': scores.tolist(), 'threshold': _THRESHOLD}
    scores = jnp.asarray(scores[None], jnp.float32)
    arrays = [boxes, scores, jnp.ones(scores.shape, bool)]
    return lambda *x: nms.nms(*x, _THRESHOLD, args.boxes), arrays, request
  shapes = [
    (1, -(-height // stride), -(-width // stride), args.channels)
    for stride in _STRIDES
  ]
  keys = jax.random.split(jax.random.key(0), len(shapes))
  features = [
    jax.random.normal(key, shape)
    for key, shape in zip(keys, shapes, strict=True)
  ]
  request |= {
    'shapes': [(b, c, h, w) for b, h, w, c in shapes],
    'strides': _STRIDES,
    'finest_side': _FINEST_SIDE,
    'output_size': _OUTPUT_SIZE,
  }
  return _ALIGN[work], [features, boxes], request


def _align(features, boxes):
  return roi_align.roi_align(
    features, boxes, _STRIDES, _OUTPUT_SIZE, _FINEST_SIDE
  )


def _align_and_gradient(features, boxes):
  out, pullback = jax.vjp(lambda x: _align(x, boxes), features)
  return out, pullback(jnp.ones_like(out))


_ALIGN = {'roi_align': _align, 'roi_align_gradient': _align_and_gradient}
_WORKS = ('nms', *_ALIGN)


def measure(
  work: str, args: argparse.Namespace, notes: list[str]
) -> Iterator[dict[str, Any]]:
  """Yields a row of the table for each contestant.

  Args:
    work: Name of `_WORKS`.
    args: Parsed options.
    notes: Gets the peer, or why it does not run.
  """
  harness.announce(work)
  function, arrays, request = make_work(work, args)
  compiled = jax.jit(function).lower(*arrays).compile()
  contestants = {'ours': harness.compiled_contestant(compiled, *arrays)}
  temporary = compiled.memory_analysis().temp_size_in_bytes / harness.MIB
  with contextlib.ExitStack() as stack:
    peers = harness.start_peers(
      stack, {'torchvision': request}, args.torch_python, notes
    )
    seconds = harness.take_turns(
      contestants | peers, args.rounds, args.turn_seconds
    )
  for name, samples in seconds.items():
    yield {
      'work': work,
      'contestant': name,
      'ms': harness.median_ms(samples),
      'torchvision / this': harness.ratio(seconds.get('torchvision'), samples),
      'temporary MiB': temporary if name == 'ours' else None,
      'seconds': samples,
    }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table and writes the record."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.detection', description=__doc__.splitlines()[0]
  )
  harness.add_arguments(parser)
  harness.add_peer_arguments(parser)
  parser.add_argument(
    '--boxes',
    type=int,
    default=2000,
    help='proposals of NMS (default: %(default)s)',
  )
  parser.add_argument(
    '--rois',
    type=int,
    default=512,
    help='boxes of RoIAlign (default: %(default)s)',
  )
  parser.add_argument(
    '--size',
    type=harness.list_of(int),
    default='800,1344',
    help='height and width of the image in px (default: %(default)s)',
  )
  parser.add_argument(
    '--channels',
    type=int,
    default=256,
    help='of the maps (default: %(default)s)',
  )
  args = parser.parse_args(argv)
  rows, notes = [], []
  for work in _WORKS:
    rows += measure(work, args, notes)
  harness.report(args, _HEADER, rows, notes)
  return 0


if __name__ == '__main__':
  sys.exit(main())
