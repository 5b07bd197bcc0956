"""The order of examples: passes, canvases, and access at any position."""

import collections
import dataclasses

import numpy as np
import pytest

from acmix_jax.data import order

# Of the sizes 5 x 4, 2 x 4 and less than a batch of 4.
CANVASES = np.repeat([2, 0, 7], [20, 10, 3])


@dataclasses.dataclass(frozen=True)
class Blanks:
  """A source without content."""

  canvases: np.ndarray | None
  length: int

  def __len__(self):
    return self.length


SEVERAL = Blanks(np.random.default_rng(0).permutation(CANVASES), 33)


def batches(source, count, start=0, seed=5, **options):
  """Indices of `count` batches of 4 images, [count, 4]."""
  stream = order.TrainOrder(source, 4, seed, **options).indices()
  positions = range(4 * start, 4 * (start + count))
  return np.array([stream[position] for position in positions]).reshape(-1, 4)


def test_one_canvas_is_the_order_without_canvases():
  without, one = Blanks(None, 21), Blanks(np.full(21, 3), 21)
  stream = batches(without, 21)
  np.testing.assert_array_equal(batches(one, 21), stream)
  for epoch in stream.reshape(4, 21):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(21))
  for source in (without, one):
    assert order.steps_per_epoch(source, 4) == 5
    assert order.steps_per_epoch(source, 22) == 1


@pytest.mark.parametrize('seed', range(3))
def test_an_epoch_is_a_pass_over_each_canvas(seed):
  steps = order.steps_per_epoch(SEVERAL, 4)
  assert steps == 5 + 3 + 1
  epochs = batches(SEVERAL, 2 * steps, seed=seed).reshape(2, steps, 4)
  sequences = []
  for epoch in epochs:
    canvases = SEVERAL.canvases[epoch]
    assert (canvases == canvases[:, :1]).all()
    sequences.append(tuple(canvases[:, 0]))
    assert collections.Counter(sequences[-1]) == {2: 5, 0: 3, 7: 1}
    counts = np.bincount(epoch.ravel(), minlength=33)
    assert counts.min() == 1 and counts.max() == 2
    # 10 and 3 examples need 2 and 1 more to fill their last batches.
    assert (counts == 2).sum() == 3
    assert (counts[SEVERAL.canvases == 2] == 1).all()
  assert (epochs[0] != epochs[1]).any()


def test_canvases_come_in_random_order():
  steps = order.steps_per_epoch(SEVERAL, 4)
  stream = order.TrainOrder(SEVERAL, 4, seed=5).indices()
  # The first row of each batch tells its canvas.
  first = [stream[4 * step] for step in range(150 * steps)]
  sequences = SEVERAL.canvases[first].reshape(150, steps)
  shares = (sequences == 2).mean(axis=0)
  np.testing.assert_allclose(shares, 5 / 9, atol=0.1)
  assert len({tuple(sequence) for sequence in sequences}) > 100


def test_order_is_read_from_any_step():
  straight = batches(SEVERAL, 20)  # More than two epochs.
  for start in (1, 8, 9, 19):
    np.testing.assert_array_equal(
      batches(SEVERAL, 20 - start, start), straight[start:]
    )


def test_repeats_stay_on_their_canvas():
  steps = order.steps_per_epoch(SEVERAL, 4)
  epoch = batches(SEVERAL, steps, repeats=2)
  canvases = SEVERAL.canvases[epoch]
  assert (canvases == canvases[:, :1]).all()
  np.testing.assert_array_equal(
    epoch[canvases[:, 0] == 2][:, ::2], epoch[canvases[:, 0] == 2][:, 1::2]
  )


def test_evaluation_fills_the_last_batch_of_each_canvas():
  indices, counted = order.eval_order(SEVERAL, 4)
  assert indices.shape == counted.shape == (5 * 4 + 3 * 4 + 1 * 4,)
  canvases = SEVERAL.canvases[indices].reshape(-1, 4)
  np.testing.assert_array_equal(canvases[:, 0], [0] * 3 + [2] * 5 + [7])
  assert (canvases == canvases[:, :1]).all()
  np.testing.assert_array_equal(np.sort(indices[counted]), np.arange(33))


def test_next_examples_are_on_the_same_canvas():
  source = Blanks(np.array([0, 1, 0, 0, 1, 0]), 6)
  assert list(order.following(source, 3)) == [3, 5, 0, 2]
  assert list(order.following(Blanks(None, 4), 3)) == [3, 0, 1, 2]


def test_canvases_of_another_length_are_refused():
  with pytest.raises(ValueError, match=r'shape \(33,\); expected \(32,\)'):
    order.TrainOrder(Blanks(CANVASES, 32), 4)
