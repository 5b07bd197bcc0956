"""Priorities of the source choose the anchors and regions that it chose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.models.detection import (
  CascadeMaskRCNN,
  MaskRCNN,
  proposals,
  regions,
)
from acmix_jax.ops import anchors as anchor_ops
from tests.fixtures import detectors

IMAGES = range(3)
SIZES = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
NUM_ANCHORS, NUM_REGIONS = 64, 24  # of the fixtures
MODELS = {'mask_rcnn': MaskRCNN, 'cascade_mask_rcnn': CascadeMaskRCNN}


@pytest.fixture(params=MODELS)
def name(request):
  return request.param


@pytest.fixture
def arrays(name):
  return detectors.load(name)[0]


def _calls(arrays, first, key):
  """What three calls of a sampler, one an image, were given or gave."""
  return [arrays[f'subsampled/sampler/call{first + i}/{key}'] for i in IMAGES]


def _among(there, values):
  """Priorities by candidate; padding has the smallest."""
  result = np.full(there.shape, -1.0, np.float32)
  for row, own, value in zip(result, there, values, strict=True):
    row[own] = value
  return result


def test_anchors_are_those_of_the_source(arrays):
  inside = np.stack([arrays[f'rpn/inside/{i}'] for i in IMAGES])

  @jax.jit
  def run(inside, truth, priorities):
    anchors = jnp.concatenate(anchor_ops.on_maps(anchor_ops.RPN, SIZES))
    return proposals.targets(anchors, inside, truth, priorities, NUM_ANCHORS)

  truth = jax.tree.map(jnp.asarray, detectors.truth(arrays))
  priorities = _among(inside, _calls(arrays, 0, 'priority'))
  samples = jax.tree.map(np.asarray, run(inside, truth, priorities).samples)
  for i in IMAGES:
    numbers = np.flatnonzero(inside[i])
    for kind, rows in (
      ('pos_inds', samples.positive[i]),
      ('neg_inds', samples.valid[i] & ~samples.positive[i]),
    ):
      want = _calls(arrays, 0, kind)[i]
      np.testing.assert_array_equal(samples.index[i][rows], numbers[want])


def test_regions_are_those_of_the_source(name, arrays):
  truth = jax.tree.map(jnp.asarray, detectors.truth(arrays))
  boxes = np.stack([arrays[f'subsampled/rpn/proposals/{i}'] for i in IMAGES])
  there = np.concatenate([truth.valid, np.ones(boxes.shape[:2], bool)], axis=1)
  run = functools.partial(
    regions.sample,
    thresholds=MODELS[name].stages[0].thresholds,
    number=NUM_REGIONS,
    num_classes=detectors.NUM_CLASSES,
  )
  found = jax.jit(run)(
    boxes[..., :4],
    jnp.ones(boxes.shape[:2], bool),
    truth,
    _among(there, _calls(arrays, 3, 'priority')),
  )
  found = jax.tree.map(np.asarray, found)
  rois = arrays['subsampled/stage0/rois']
  np.testing.assert_array_equal(np.nonzero(found.valid)[0], rois[:, 0])
  np.testing.assert_array_equal(found.boxes[found.valid], rois[:, 1:])
  np.testing.assert_array_equal(
    found.positive.sum(axis=1), [len(x) for x in _calls(arrays, 3, 'pos_inds')]
  )
