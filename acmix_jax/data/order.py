"""Which example of a source stands where in the stream of batches.

All examples of a batch share a canvas, the shape to which they are padded. The
canvas of a step follows from the seed and the step alone, so that all processes
agree on it and a resumed training needs no other state.
"""

import functools
import sys
from collections.abc import Iterator

import grain
import numpy as np

from acmix_jax.data import sources


class TrainOrder:
  """Indices of the endless stream of shuffled examples, by position.

  Each canvas has a stream of its own, shuffled anew in each pass over its
  examples, and a step takes the next batch of one of them. In an epoch each
  canvas has its number of batches, in random order. With several canvases an
  epoch is one pass over each, the last batch being filled from the beginning
  of the pass. With one canvas batches span the ends of passes, and an epoch is
  as many whole batches as there are.

  Attributes:
    steps_per_epoch: batches in an epoch, of all canvases.
  """

  def __init__(
    self,
    source: sources.Source,
    batch_size: int,
    seed: int = 0,
    repeats: int = 1,
  ):
    """Shuffles.

    Args:
      source: the examples and their canvases.
      batch_size: examples in a batch, over all processes.
      seed: seed of all orders.
      repeats: times an example is shown in a row; a pass keeps its length and
        shows only a share of the examples.
    """
    self._members = _members(source)
    self._batch_size, self._seed, self._repeats = batch_size, seed, repeats
    sizes = [len(members) for members in self._members]
    # By canvas: batches in an epoch, and positions in a pass.
    if len(sizes) == 1:
      self._batches, self._lengths = (max(1, sizes[0] // batch_size),), sizes
    else:
      self._batches = tuple(-(-size // batch_size) for size in sizes)
      self._lengths = [count * batch_size for count in self._batches]
    self._shuffled = [
      grain.MapDataset.range(size).seed(seed).shuffle().repeat()
      for size in sizes
    ]
    self.steps_per_epoch = sum(self._batches)

  def indices(self) -> grain.MapDataset:
    """The stream."""
    return grain.MapDataset.range(sys.maxsize).map(self._index)

  def _index(self, position: int) -> int:
    step, row = divmod(position, self._batch_size)
    epoch, step = divmod(step, self.steps_per_epoch)
    canvases, earlier = _schedule(self._batches, self._seed, epoch)
    canvas = canvases[step]
    batch = epoch * self._batches[canvas] + int(earlier[step])
    passes, offset = divmod(
      batch * self._batch_size + row, self._lengths[canvas]
    )
    members = self._members[canvas]
    offset = offset % len(members) // self._repeats
    shuffled = self._shuffled[canvas]
    return int(members[shuffled[passes * len(members) + offset]])


@functools.lru_cache(maxsize=8)
def _schedule(
  batches: tuple[int, ...], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
  """Canvas of each step of an epoch, and how many steps it had before."""
  canvases = np.repeat(np.arange(len(batches)), batches)
  np.random.default_rng((seed, epoch)).shuffle(canvases)
  earlier = np.zeros_like(canvases)
  for canvas, count in enumerate(batches):
    earlier[canvases == canvas] = np.arange(count)
  return canvases, earlier


def steps_per_epoch(source: sources.Source, batch_size: int) -> int:
  """Number of training batches in an epoch; see `TrainOrder`."""
  return TrainOrder(source, batch_size).steps_per_epoch


def eval_order(
  source: sources.Source, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Every example once, canvas by canvas, each in whole batches.

  Returns:
    Indices, int [m], and where they count, bool [m]: the others only fill the
    last batch of a canvas.
  """
  indices, counted = [], []
  for members in _members(source):
    padded = -(-len(members) // batch_size) * batch_size
    indices.append(np.resize(members, padded))
    counted.append(np.arange(padded) < len(members))
  return np.concatenate(indices), np.concatenate(counted)


def following(source: sources.Source, index: int) -> Iterator[int]:
  """An index and those after it on the same canvas, in a ring."""
  canvases = source.canvases
  for offset in range(len(source)):
    candidate = (index + offset) % len(source)
    if canvases is None or canvases[candidate] == canvases[index]:
      yield candidate


def _members(source: sources.Source) -> list[np.ndarray]:
  """Indices of the examples of each canvas."""
  if source.canvases is None:
    return [np.arange(len(source))]
  canvases = np.asarray(source.canvases)
  if canvases.shape != (len(source),):
    raise ValueError(
      f'canvases has the shape {canvases.shape}; expected ({len(source)},), '
      'the canvas of each example.'
    )
  return [np.flatnonzero(canvases == canvas) for canvas in np.unique(canvases)]
