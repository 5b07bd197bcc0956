"""Anchors and which of them take part, against mmdetection."""

import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import anchors
from tests.ops.detection import fixtures

NAMES = {anchors.RETINANET: 'retinanet/', anchors.RPN: 'mask_rcnn/rpn/'}


@pytest.mark.parametrize('shapes', NAMES, ids=NAMES.values())
def test_anchors_are_those_of_mmdetection(shapes):
  maps = fixtures.anchors_by_level(shapes)
  assert len(maps) == 5
  for level, boxes in enumerate(maps):
    expected = fixtures.DETECTORS[f'{NAMES[shapes]}anchors/{level}']
    np.testing.assert_array_equal(boxes, expected)


def test_anchors_keep_their_area_and_ratio():
  shapes = anchors.Anchors((4,), (8, 16), (0.5, 2))
  x1, y1, x2, y2 = anchors.in_cell(shapes, 0).T
  np.testing.assert_allclose((x2 - x1) * (y2 - y1), [32**2, 64**2] * 2, 1e-6)
  np.testing.assert_allclose((y2 - y1) / (x2 - x1), [0.5, 0.5, 2, 2], 1e-6)
  assert shapes.per_cell == 4


@pytest.mark.parametrize(
  ('shapes', 'name'),
  [(anchors.RETINANET, 'retinanet/valid'), (anchors.RPN, 'cascade/rpn/valid')],
)
def test_anchors_in_the_padding_of_the_batch_are_left_out(shapes, name):
  flags = anchors.within_padding(
    shapes, fixtures.MAP_SIZES[shapes], fixtures.PADDED_SIZES
  )
  expected = [fixtures.DETECTORS[f'{name}/{image}'] for image in range(3)]
  np.testing.assert_array_equal(flags, expected)
  assert not np.all(expected)


def test_anchors_across_the_border_are_left_out():
  [boxes] = fixtures.all_anchors(anchors.RPN)
  inside = anchors.within_image(boxes, fixtures.IMAGE_SIZES)
  padded = anchors.within_padding(
    anchors.RPN, fixtures.MAP_SIZES[anchors.RPN], fixtures.PADDED_SIZES
  )
  for image in range(3):
    np.testing.assert_array_equal(
      inside[image] & padded[image],
      fixtures.DETECTORS[f'cascade/rpn/inside/{image}'],
    )


def test_border_widens_the_image():
  boxes = jnp.asarray([[-2.0, -2, 12, 8], [-3, 0, 5, 5], [0, 0, 5, 9]])
  size = np.array([[6, 10]])
  inside = [anchors.within_image(boxes, size, border)[0] for border in (2, 3)]
  np.testing.assert_array_equal(inside, [[0, 0, 0], [1, 1, 0]])


def test_levels_and_strides_must_agree():
  with pytest.raises(ValueError, match='5 strides.* given: 2 of sizes'):
    anchors.on_maps(anchors.RPN, [(2, 2), (1, 1)])
