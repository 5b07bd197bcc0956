"""Samples against mmdetection's by recorded priorities, and their chances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import anchors, matching, sampling
from tests.ops.detection import fixtures

MASK_RCNN = fixtures.group('mask_rcnn', fixtures.DETECTORS)
CASCADE = fixtures.group('cascade', fixtures.DETECTORS)


@functools.partial(jax.jit, static_argnums=(2, 3))
def sample(matched, priorities, number, fraction):
  return sampling.sample(matched, priorities, number, fraction)


def assert_sampled(samples, call, number):
  """Positives, negatives and then nothing, as in a recorded call."""
  expected = np.concatenate([call['pos_inds'], call['neg_inds']])
  places = np.arange(min(number, len(call['priority'])))
  np.testing.assert_array_equal(
    samples.positive, places < len(call['pos_inds'])
  )
  np.testing.assert_array_equal(samples.valid, places < len(expected))
  np.testing.assert_array_equal(samples.index[samples.valid], expected)
  assert np.all(samples.index[~samples.valid] == 0)


def truths_of(image):
  gts = fixtures.DETECTORS[f'retinanet/gt/{image}/boxes']
  return gts, fixtures.padded_rows(gts, 8)


@pytest.mark.parametrize('image', range(3))
@pytest.mark.parametrize('cascade', [False, True])
def test_anchors_are_sampled_as_in_mmdetection(image, cascade):
  """Recorded numbers are of those anchors alone that take part."""
  inside = CASCADE[f'rpn/{"inside" if cascade else "valid"}/{image}']
  number, _ = matching.match(
    fixtures.all_anchors(anchors.RPN),
    *truths_of(image)[1],
    matching.RPN,
    inside[None],
  )
  arrays = CASCADE if cascade else MASK_RCNN
  call = fixtures.group(f'subsampled/sampler/call{image}', arrays)
  priorities = np.zeros(len(inside), np.float32)
  priorities[inside] = call['priority']
  samples = sample(number[0], priorities, 64, 0.5)
  index = np.flatnonzero(inside)
  call |= {key: index[call[key]] for key in ('pos_inds', 'neg_inds')}
  assert_sampled(samples, call, 64)


@pytest.mark.parametrize('image', range(3))
def test_proposals_are_sampled_as_in_mmdetection(image):
  """Ground truths come first, each its own match."""
  gts, truths = truths_of(image)
  proposals = MASK_RCNN[f'subsampled/rpn/proposals/{image}'][None, :, :4]
  number, _ = matching.match(proposals, *truths, matching.MASK_RCNN)
  number = jnp.concatenate([jnp.arange(1, len(gts) + 1), number[0]])
  call = fixtures.group(f'subsampled/sampler/call{image + 3}', MASK_RCNN)
  samples = sample(number, call['priority'], 24, 0.25)
  assert_sampled(samples, call, 24)


def test_fewer_candidates_than_asked_for_are_all_taken():
  matched = jnp.asarray([[-1, 0, 2, 0, 1], [-1, -1, -1, -1, 0]])
  priorities = jnp.zeros(matched.shape)
  samples = sample(matched, priorities, 8, 0.5)
  np.testing.assert_array_equal(
    samples.index, [[2, 4, 1, 3, 0], [4, 0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(samples.positive.sum(1), [2, 0])
  np.testing.assert_array_equal(samples.valid.sum(1), [4, 1])


def test_positives_fill_no_more_than_their_share():
  assert sampling.most_positives(9, 0.25) == 2
  matched = jnp.ones(20, jnp.int32).at[5].set(0)
  samples = sample(matched, jnp.arange(20.0)[::-1], 9, 0.25)
  np.testing.assert_array_equal(samples.index[samples.valid], [18, 19, 5])


def test_every_candidate_is_drawn_as_often():
  matched = jnp.asarray([1, 0, 1, 0, 1, 0, 1, -1])
  priorities = jax.random.uniform(jax.random.key(0), (4000, 8))
  matched = jnp.broadcast_to(matched, priorities.shape)
  samples = sample(matched, priorities, 4, 0.5)
  drawn = np.bincount(np.ravel(samples.index), minlength=8) / 4000
  # Standard deviation of a share of 2 in 4, and 2 in 3: below .008.
  np.testing.assert_allclose(drawn, [0.5, 2 / 3] * 3 + [0.5, 0], atol=0.04)
