"""Streams of small numbered examples, some of which are damaged."""

import dataclasses

import numpy as np

from acmix_jax.data import pipeline, sources, transforms


@dataclasses.dataclass(frozen=True)
class Numbers(sources.LabelledImages):
  """Images of one pixel, which is their index; some cannot be read."""

  length: int
  damaged: tuple[int, ...] = ()
  class_names = ('0', '1', '2')

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    if index in self.damaged:
      return {'image': b'damaged', 'label': 0, 'name': f'number{index}'}
    image = np.full((1, 1, 3), index, np.uint8)
    label = np.int32(index % 3)
    return {'image': image, 'label': label, 'name': f'number{index}'}


@dataclasses.dataclass(frozen=True)
class TwoCanvases(Numbers):
  """Numbers on canvas 0, or on canvas 1 where they divide by 3."""

  @property
  def canvases(self):
    return (np.arange(self.length) % 3 == 0).astype(np.int64)


def add_noise(example, rng):
  """Puts a random number into the last channel."""
  image = example['image'].copy()
  image[..., 2] = rng.integers(256)
  return {**example, 'image': image}


KEEP = transforms.Decode()


NOISE = transforms.Compose((transforms.Decode(), add_noise))


def take(batches, count):
  taken = [next(batches) for _ in range(count)]
  batches.close()
  return taken


def train(source, count, *, batch_size=8, seed=5, **kwargs):
  batches = pipeline.train_batches(
    source, NOISE, batch_size=batch_size, seed=seed, **kwargs
  )
  return take(batches, count)


def evaluate(source, **kwargs):
  batches = pipeline.eval_batches(source, KEEP, **kwargs)
  result = list(batches)
  damaged = batches.damaged
  batches.close()
  return result, damaged


def indices(batches):
  return np.concatenate([batch['image'][:, 0, 0, 0] for batch in batches])


def assert_same(batches, expected):
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])
