"""Boxes: the coder and overlaps against mmdetection, clipping by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import boxes
from tests.ops.detection import fixtures

CODER = fixtures.group('coder')


def assert_close(actual, expected, tolerance=1e-6):
  scale = max(1, np.abs(expected).max(initial=0))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('setting', range(4))
def test_encode_is_that_of_mmdetection(setting):
  stds = CODER[f'{setting}/stds'].tolist()
  encoded = boxes.encode(CODER['boxes'], CODER['gts'], stds)
  assert_close(encoded, CODER[f'{setting}/encoded'])


@pytest.mark.parametrize('suffix', ['', '_clipped'])
@pytest.mark.parametrize('setting', range(4))
def test_decode_and_its_gradient_are_those_of_mmdetection(setting, suffix):
  case = fixtures.group(str(setting), CODER)
  size = np.array([80, 100]) if suffix else None

  @jax.jit
  def run(deltas):
    def decode(x):
      return boxes.decode(CODER['boxes'], x, case['stds'].tolist(), size)

    decoded, pullback = jax.vjp(decode, deltas)
    return decoded, *pullback(case['cotangent'])

  decoded, gradient = run(case['deltas'])
  assert_close(decoded, case[f'decoded{suffix}'])
  assert_close(gradient, case[f'grad_deltas{suffix}'])


def test_decode_broadcasts_over_classes_and_images():
  deltas = CODER['classwise/deltas'].reshape(-1, 3, 4)
  expected = CODER['classwise/decoded_clipped'].reshape(-1, 3, 4)
  stds = (0.1, 0.1, 0.2, 0.2)
  size = np.array([80, 100])
  decoded = boxes.decode(CODER['boxes'][:, None], deltas, stds, size)
  assert_close(decoded, expected)
  sizes = np.tile(size, (len(deltas), 1, 1))
  decoded = boxes.decode(CODER['boxes'][:, None], deltas, stds, sizes)
  assert_close(decoded, expected)


def test_encode_and_decode_are_inverse():
  decoded = boxes.decode(
    CODER['boxes'], boxes.encode(CODER['boxes'], CODER['gts'])
  )
  assert_close(decoded, CODER['gts'])


def test_overlaps_are_those_of_mmdetection():
  case = fixtures.group('overlaps')
  a, b = case['a'][:, None], case['b'][None]
  assert_close(boxes.iou(a, b), case['iou'])
  assert_close(boxes.covered(a, b), case['iof'])
  assert_close(boxes.giou(a, b), case['giou'])


def test_giou_has_the_gradient_of_mmdetection():
  case = fixtures.group('giou')

  def loss(pred):
    return 1 - boxes.giou(pred, case['target'])

  assert_close(loss(case['pred']), case['loss'])
  gradient = jax.jit(jax.grad(lambda pred: loss(pred).sum()))(case['pred'])
  assert_close(gradient, case['grad_of_sum'], 1e-5)


def test_clip_takes_corners_to_the_border():
  given = jnp.asarray([[-1, 2, 30, 41], [20.5, -3, 19, 50]])
  expected = [[0, 2, 20, 40], [20, 0, 19, 40]]
  np.testing.assert_array_equal(boxes.clip(given, np.array([40, 20])), expected)


def test_area_of_an_inverted_side_is_negative():
  given = jnp.asarray([[1.0, 2, 4, 8], [4, 2, 1, 8], [4, 8, 1, 2]])
  np.testing.assert_array_equal(boxes.area(given), [18, -18, 18])


def test_products_are_rounded_before_they_are_added():
  rng = np.random.default_rng(0)
  x, y = rng.uniform(0, 100, (2, 10_000)).astype(np.float32)
  step = np.float32(1334.3712)
  rounded = jax.jit(lambda x, y: y + boxes.product(x, jnp.full_like(x, step)))
  np.testing.assert_array_equal(rounded(x, y), y + x * step)
