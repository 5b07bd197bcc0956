"""Batches for training and evaluation, read, decoded and transformed ahead.

The stream of training batches is a function of the seed and of nothing else:
not of threads, worker processes or the number of processes that share a batch.
Hence the step is all that a checkpoint must know to continue it.
"""

import dataclasses
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from acmix_jax.data import decode, order, sources, transforms

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_NAMES_IN_ERROR = 20


class _Loaded(NamedTuple):
  """An example, or a batch of them.

  Attributes:
    example: what the transform returned, and its mask.
    names: names of the examples; none for a blank.
    damaged: what was found damaged on the way, messages by index.
  """

  example: transforms.Example
  names: list[str]
  damaged: dict[int, str]


class TooManyDamagedError(RuntimeError):
  """More files are damaged than `max_damaged` allows."""

  def __init__(self, damaged: Sequence[str], max_damaged: int):
    super().__init__(damaged, max_damaged)
    self.damaged = damaged
    self.max_damaged = max_damaged

  def __str__(self) -> str:
    shown = '\n  '.join(self.damaged[:_NAMES_IN_ERROR])
    more = len(self.damaged) - _NAMES_IN_ERROR
    return (
      f'{len(self.damaged)} images cannot be read, more than '
      f'max_damaged={self.max_damaged} (data.max_damaged) allows:\n  {shown}'
      + (f'\n  and {more} more' if more > 0 else '')
    )


class Batches:
  """Iterator over batches; call `close()` to stop its threads and processes.

  A batch holds the keys of its examples, stacked, and `mask`, bool [b]: False
  where a blank stands in for an example.

  Attributes:
    names: names of the examples of the last batch, in order.

  Raises (from next()):
    TooManyDamagedError: see `train_batches`.
  """

  def __init__(self, dataset: grain.IterDataset, max_damaged: int):
    self.names: list[str] = []
    self._iterator = iter(dataset)
    self._max_damaged = max_damaged
    self._damaged: dict[int, str] = {}  # By the index in the source.

  @property
  def damaged(self) -> int:
    """Number of different images that could not be read so far."""
    return len(self._damaged)

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    batch, self.names, damaged = next(self._iterator)
    for index, message in damaged.items():
      if index not in self._damaged:
        logger.warning('Damaged image, left out: %s', message)
        self._damaged[index] = message
    if self.damaged > self._max_damaged:
      self.close()
      raise TooManyDamagedError(list(self._damaged.values()), self._max_damaged)
    return batch

  def close(self) -> None:
    """Stops reading ahead; the iterator is at its end afterwards."""
    if hasattr(self._iterator, 'close'):
      self._iterator.close()
    # Grain's iterator must not live until the interpreter is torn down.
    self._iterator = iter(())


def train_batches(
  source: sources.Source,
  transform: transforms.Transform,
  *,
  batch_size: int,
  seed: int,
  repeats: int = 1,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 4,
  workers: int = 0,
  max_damaged: int = 100,
) -> Batches:
  """Endless batches of shuffled, randomly transformed examples.

  Each canvas of the source is shuffled anew for each pass over its examples;
  see `order.TrainOrder`. The mask is always True: a damaged example is replaced
  by the next one of the source on the same canvas that is not.

  With `repeats` above 1 (repeated augmentation: "Augment your batch: better
  training with larger batches") an example comes that many times in a row, each
  time transformed anew. A pass keeps its length and shows only a share of the
  examples. Source: the RASampler of DeiT and PVT, with 3 repeats. Unlike there
  the epoch is not cut to a multiple of 256.

  Args:
    source: examples to draw from.
    transform: called with each example and a generator of its own.
    batch_size: examples in a batch over all processes together.
    seed: seed of the order and of the transforms.
    repeats: times an example is shown in a row.
    start_step: number of batches to skip, at no cost.
    process_index: place of this process's rows in each batch: it receives the
      block of `batch_size / process_count` rows of this number.
    process_count: number of processes that share a batch.
    threads: batches that are made at the same time, in each worker.
    workers: processes that make batches; 0: this one does. Threads alone
      suffice up to about eight cores, and start faster.
    max_damaged: different damaged files that this process puts up with.

  Raises:
    ValueError: an argument is out of range.
  """
  _check_arguments(source, batch_size, process_index, process_count)
  _check_not_negative(
    seed=seed,
    start_step=start_step,
    threads=threads,
    workers=workers,
    max_damaged=max_damaged,
  )
  if repeats < 1:
    raise ValueError(f'repeats={repeats} is less than 1, every image once.')
  load = _LoadOrReplace(source, transform, max_damaged)
  indices = order.TrainOrder(source, batch_size, seed, repeats).indices()
  examples = indices.random_map(load, seed=seed)
  batches = _share(examples, batch_size, process_index, process_count)
  return Batches(_prefetch(batches[start_step:], threads, workers), max_damaged)


def eval_batches(
  source: sources.Source,
  transform: transforms.Transform,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 4,
  workers: int = 0,
  max_damaged: int = 100,
) -> Batches:
  """Every example once, canvas by canvas, in order, in batches of one size.

  All processes receive the same number of batches. Blanks fill the last batch
  of a canvas and stand in for damaged examples; their mask is False. So every
  readable example counts exactly once on any number of processes.

  Args and Raises: as for `train_batches`.
  """
  _check_arguments(source, batch_size, process_index, process_count)
  _check_not_negative(threads=threads, workers=workers, max_damaged=max_damaged)
  indices, counted = order.eval_order(source, batch_size)
  load = _LoadOrBlank(source, transform, indices, counted)
  examples = grain.MapDataset.range(len(indices)).random_map(load, seed=0)
  batches = _share(examples, batch_size, process_index, process_count)
  return Batches(_prefetch(batches, threads, workers), max_damaged)


def _check_arguments(
  source: sources.Source,
  batch_size: int,
  process_index: int,
  process_count: int,
) -> None:
  if not len(source):
    raise ValueError('The source holds no images.')
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index={process_index} is not below '
      f'process_count={process_count}.'
    )
  if batch_size < 1 or batch_size % process_count:
    nearest = max(1, round(batch_size / process_count)) * process_count
    raise ValueError(
      f'batch_size={batch_size} cannot be shared by {process_count} '
      f'processes; nearest that can: {nearest}.'
    )


def _check_not_negative(**arguments: int) -> None:
  for name, value in arguments.items():
    if value < 0:
      raise ValueError(f'{name}={value} is negative.')


def _share(
  examples: grain.MapDataset,
  batch_size: int,
  process_index: int,
  process_count: int,
) -> grain.MapDataset:
  """The rows of each batch that are this process's, one block of them."""
  blocks = examples.batch(batch_size // process_count, batch_fn=_stack)
  return blocks[process_index::process_count]


@dataclasses.dataclass(frozen=True)
class _LoadOrReplace:
  """Loads an example, or the next one of the source that can be read."""

  source: sources.Source
  transform: transforms.Transform
  max_damaged: int

  def __call__(self, index: int, rng: np.random.Generator) -> _Loaded:
    damaged = {}
    for candidate in order.following(self.source, index):
      try:
        example, name = _load(self.source, candidate, self.transform, rng)
        return _Loaded(example, [name], damaged)
      except decode.DecodeError as error:
        damaged[candidate] = str(error)
        if len(damaged) > self.max_damaged:
          break
    raise TooManyDamagedError(list(damaged.values()), self.max_damaged)


@dataclasses.dataclass(frozen=True)
class _LoadOrBlank:
  """Loads an example, or a blank where it is damaged or only fills a batch.

  Attributes:
    indices: int [m], index of the example at each position.
    counted: bool [m], False where it only fills a batch.
  """

  source: sources.Source
  transform: transforms.Transform
  indices: np.ndarray
  counted: np.ndarray

  def __call__(self, position: int, rng: np.random.Generator) -> _Loaded:
    damaged = {}
    index = int(self.indices[position])
    if self.counted[position]:
      try:
        example, name = _load(self.source, index, self.transform, rng)
        return _Loaded(example, [name], damaged)
      except decode.DecodeError as error:
        damaged[index] = str(error)
    blank = dict(self.source.blank(index))
    blank.pop('name', None)
    example = {**self.transform(blank, rng), 'mask': np.bool_(False)}
    return _Loaded(example, [], damaged)


def _load(
  source: sources.Source,
  index: int,
  transform: transforms.Transform,
  rng: np.random.Generator,
) -> tuple[transforms.Example, str]:
  """Reads and transforms one example, and adds its mask; and its name.

  Raises:
    DecodeError: it cannot be read or decoded; the message begins with its name.
  """
  try:
    example = dict(source[index])
  except OSError as error:
    raise decode.DecodeError(str(error)) from error
  name = example.pop('name')
  try:
    return {**transform(example, rng), 'mask': np.bool_(True)}, name
  except decode.DecodeError as error:
    raise decode.DecodeError(f'{name}: {error}') from error


def _stack(loaded: Sequence[_Loaded]) -> _Loaded:
  """Stacks examples, and joins their names and what was damaged.

  Raises:
    ValueError: the examples differ in their keys, or in the shapes of one.
  """
  examples, names, damaged = zip(*loaded, strict=True)
  batch = {}
  for key in dict.fromkeys(itertools.chain(*examples)):
    values = [example[key] for example in examples if key in example]
    shapes = {np.shape(value) for value in values}
    if len(values) < len(examples) or len(shapes) > 1:
      raise ValueError(
        f'{key!r} is in {len(values)} of the {len(examples)} examples of a '
        f'batch, in the shapes {sorted(shapes)}. The source (with its blanks) '
        'and the transform must give all examples the same keys and shapes.'
      )
    batch[key] = np.stack(values)
  return _Loaded(
    batch,
    [*itertools.chain(*names)],
    {key: text for found in damaged for key, text in found.items()},
  )


def _prefetch(
  batches: grain.MapDataset, threads: int, workers: int
) -> grain.IterDataset:
  # One batch more than are being made is enough to never wait for a slow one.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=threads + 1 if threads else 0
  )
  dataset = batches.to_iter_dataset(options)
  if not workers:
    return dataset
  if not flags.FLAGS.is_parsed():
    # Grain reads flags of its own, also in programs that parse none.
    flags.FLAGS.mark_as_parsed()
  return dataset.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers),
    worker_init_fn=_bind_to_parent,
  ).map(_copy)


def _copy(loaded: _Loaded) -> _Loaded:
  """Takes a batch out of the memory that a worker shares with this process.

  jax may hold arrays until Python ends, when grain can no longer free them.
  """
  example = {key: np.array(value) for key, value in loaded.example.items()}
  return loaded._replace(example=example)


def _bind_to_parent(worker_index: int, worker_count: int) -> None:
  """Makes a worker outlive signals to the group, but not the main process.

  A signal to the whole group (Ctrl-C, a scheduler) must leave the workers to
  the main process, which may save first. When that dies by whatever cause, the
  kernel closes its end of the pipe that `join` waits on. (PR_SET_PDEATHSIG
  would not do: it fires when the thread that started the worker ends.)
  """
  del worker_index, worker_count
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def exit_after_parent():
    parent.join()
    os._exit(1)

  threading.Thread(target=exit_after_parent, daemon=True).start()
