"""Matching against mmdetection's assigner, and what padding must not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import anchors, matching
from tests.ops.detection import fixtures

ASSIGNER = fixtures.group('assigner')
CASES = sorted({key.split('/')[0] for key in ASSIGNER if '/' in key})
SETTINGS = {
  'retina': matching.RETINANET,
  'rpn': matching.RPN,
  'mask_rcnn': matching.MASK_RCNN,
  'cascade2': matching.CASCADE[1],
}


@functools.cache
def compiled(thresholds):
  return jax.jit(functools.partial(matching.match, thresholds=thresholds))


@pytest.mark.parametrize('setting', SETTINGS)
@pytest.mark.parametrize('case', CASES)
def test_matches_are_those_of_mmdetection(case, setting):
  truths, valid = fixtures.padded_rows(ASSIGNER[f'{case}/gts'], 4)
  matches = compiled(SETTINGS[setting])(
    ASSIGNER['anchors'][None], truths, valid
  )
  expected = ASSIGNER[f'{case}/{setting}']
  np.testing.assert_array_equal(matches.number[0], expected)
  np.testing.assert_array_equal(matches.index[0], np.maximum(expected - 1, 0))


def test_regions_to_ignore_are_those_of_mmdetection():
  given = ASSIGNER['anchors'][None]
  regions, there = fixtures.padded_rows(ASSIGNER['ignore'], 3)
  ignored = matching.mostly_within(given, regions, there, 0.5)
  for case in CASES:
    truths, valid = fixtures.padded_rows(ASSIGNER[f'{case}/gts'], 4)
    matches = compiled(matching.RETINANET)(given, truths, valid, valid=~ignored)
    expected = ASSIGNER[f'{case}/with_ignore']
    np.testing.assert_array_equal(matches.number[0], expected, case)


@pytest.mark.parametrize('image', range(3))
def test_anchors_of_retinanet_match_as_in_mmdetection(image):
  arrays = fixtures.group('retinanet', fixtures.DETECTORS)
  taking_part = arrays[f'valid/{image}']
  truths, valid = fixtures.padded_rows(arrays[f'gt/{image}/boxes'], 8)
  number, overlap = compiled(matching.RETINANET)(
    fixtures.all_anchors(anchors.RETINANET),
    truths,
    valid,
    valid=taking_part[None],
  )
  expected = np.full(len(taking_part), matching.IGNORED)
  expected[taking_part] = arrays[f'assign/{image}/gt_inds']
  np.testing.assert_array_equal(number[0], expected)
  expected = arrays[f'assign/{image}/max_overlaps']
  np.testing.assert_allclose(overlap[0][taking_part], expected, atol=1e-6)
  assert np.all(overlap[0][~taking_part] == -1)


@pytest.mark.parametrize('image', range(3))
def test_anchors_of_the_cascade_match_as_in_mmdetection(image):
  """An object's best anchor is its best one within the image."""
  arrays = fixtures.group('cascade/rpn', fixtures.DETECTORS)
  gts = fixtures.DETECTORS[f'retinanet/gt/{image}/boxes']
  truths, valid = fixtures.padded_rows(gts, 8)
  inside = arrays[f'inside/{image}']
  number, _ = compiled(matching.RPN)(
    fixtures.all_anchors(anchors.RPN), truths, valid, valid=inside[None]
  )
  positives = np.flatnonzero(number[0] > 0)
  np.testing.assert_array_equal(positives, arrays[f'targets/{image}/pos_inds'])
  weights = arrays[f'targets/{image}/label_weights']
  np.testing.assert_array_equal(number[0] != matching.IGNORED, weights)


@pytest.mark.parametrize('image', range(3))
def test_proposals_match_as_in_mmdetection(image):
  arrays = fixtures.group('mask_rcnn', fixtures.DETECTORS)
  gts = fixtures.DETECTORS[f'retinanet/gt/{image}/boxes']
  number, overlap = compiled(matching.MASK_RCNN)(
    arrays[f'rpn/proposals/{image}'][None, :, :4],
    *fixtures.padded_rows(gts, 8),
  )
  assign = fixtures.group(f'stage0/assign/{image}', arrays)
  np.testing.assert_array_equal(number[0], assign['gt_inds'])
  np.testing.assert_allclose(overlap[0], assign['max_overlaps'], atol=1e-6)


def test_padding_between_objects_is_skipped():
  """Images of a batch differ in objects, and padding may come first."""
  given = ASSIGNER['anchors'][None]
  gts = ASSIGNER['low_quality_steals/gts']
  truths = jnp.stack([gts[np.array([0, 0, 1])], jnp.zeros((3, 4))])
  valid = jnp.asarray([[False, True, True], [False] * 3])
  number, overlap = matching.match(given, truths, valid, matching.RETINANET)
  expected = ASSIGNER['low_quality_steals/retina']
  expected = np.where(expected > 0, expected + 1, expected)
  np.testing.assert_array_equal(number, [expected, np.zeros_like(expected)])
  assert np.all(overlap[1] == 0)
