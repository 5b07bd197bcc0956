"""RoIAlign against mmdetection's, sample by sample, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import sharding

from acmix_jax.ops import roi_align
from tests.ops.detection import fixtures

UNIT = fixtures.group('roi_align')


def by_image(rois, images, *rows):
  """Rows by RoI as rows by image, padded; and where each RoI is."""
  image = np.asarray(rois[:, 0], int)
  place = np.array([np.sum(image[:i] == image[i]) for i in range(len(image))])
  count = np.bincount(image, minlength=images).max()
  results = []
  for row in (rois[:, 1:], *rows):
    result = np.zeros((images, count, *row.shape[1:]), np.float32)
    result[image, place] = row
    results.append(jnp.asarray(result))
  return (image, place), *results


def channels_last(x):
  return jnp.moveaxis(x, 1, -1)


@functools.partial(jax.jit, static_argnames=('strides', 'size', 'finest_side'))
def align(features, boxes, to_out, strides, size, finest_side=56.0):
  """Means and the gradient of the maps."""

  def means(features):
    return roi_align.roi_align(features, boxes, strides, size, finest_side)

  out, pullback = jax.vjp(means, features)
  return out, pullback(jnp.ones_like(out) if to_out is None else to_out)[0]


@pytest.mark.parametrize('size', [7, 14])
def test_means_and_gradient_are_those_of_mmdetection(size):
  """Boxes beyond the map, of less than a pixel, empty, and huge."""
  case = fixtures.group(str(size), UNIT)
  where, boxes, to_out = by_image(
    UNIT['rois'], 2, channels_last(case['cotangent'])
  )
  features = [channels_last(UNIT['feature'])]
  out, [gradient] = align(features, boxes, to_out, (4,), size)
  expected = channels_last(case['output'])
  np.testing.assert_allclose(out[where], expected, rtol=0, atol=1e-5)
  expected = channels_last(case['grad_feature'])
  np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)


def test_levels_are_those_of_mmdetection():
  case = fixtures.group('levels')
  levels = roi_align.levels_of(case['rois'][:, 1:])
  np.testing.assert_array_equal(levels, case['level'])


def test_boxes_of_a_pyramid_are_those_of_mmdetection():
  arrays = fixtures.group('mask_rcnn', fixtures.DETECTORS)
  stage = fixtures.group('stage0', arrays)
  levels = roi_align.levels_of(stage['rois'][:, 1:], 4, 14.0)
  np.testing.assert_array_equal(levels, stage['levels'])
  assert len(set(levels.tolist())) == 3
  pyramid = [channels_last(arrays[f'pyramid/{i}']) for i in range(4)]
  where, boxes = by_image(stage['rois'], 2)
  out, _ = align(pyramid, boxes, None, (4, 8, 16, 32), 7, 14.0)
  first = channels_last(stage['bbox_feats_first8'])
  np.testing.assert_allclose(out[where][:8], first, rtol=0, atol=1e-5)
  means = out[where].mean((1, 2))
  np.testing.assert_allclose(means, stage['bbox_feats_mean'], rtol=0, atol=1e-5)


def sampled(x, box, stride, size):
  """The definition, sample by sample, of one map [h, w, c] in float64."""
  weights = []
  for low, high, pixels in zip(box[:2], box[2:], x.shape[1::-1], strict=True):
    low, high = (np.float64(v) / stride - 0.5 for v in (low, high))
    count = max(int(np.ceil((high - low) / size)), 0)
    samples = np.arange(size * count).reshape(size, count, 1)
    samples = low + (high - low) / size * (samples + 0.5) / max(count, 1)
    inside = (samples >= -1) & (samples <= pixels)
    samples = np.clip(samples, 0, pixels - 1)
    hats = np.maximum(1 - np.abs(samples - np.arange(pixels)), 0) * inside
    weights.append(hats.sum(1) / max(count, 1))
  by_column, by_row = weights
  return np.einsum('iy,jx,yxc->ijc', by_row, by_column, x)


BOXES = [
  (3.3, 0, 6.1, 360),  # 90 rows of tiles' worth of pixels, less than one wide.
  (0, 0, 300, 360),  # All of the map: many samples, many tiles.
  (64, 64, 128, 128),  # A tile exactly.
  (60.1, 70.2, 61.7, 71.1),
  (10, 10, 10, 40),  # Empty: nothing.
  (290, 350, 420, 460),  # Mostly beyond the map.
  (50, 40, 30, 90),  # Inverted: nothing.
]


def test_boxes_of_any_number_of_samples_are_exact():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((1, 90, 75, 3)).astype(np.float32)
  boxes = np.array([BOXES], np.float32)
  out, [gradient] = align([x], boxes, None, (4,), 7)
  expected = np.stack([sampled(x[0], box, 4, 7) for box in BOXES])
  # 13 rows of samples a bin, of which mmdetection takes all.
  np.testing.assert_allclose(out[0], expected, rtol=0, atol=2e-5)
  assert not np.any(out[0, 4]) and not np.any(out[0, 6])
  # The gradient is the transpose: <1, A x> = <A^T 1, x>.
  np.testing.assert_allclose(np.sum(gradient * x), expected.sum(), rtol=1e-4)


def test_weights_of_whole_lines_add_up_to_one():
  pixels = jnp.arange(400)[None]
  start, stop = (
    jnp.asarray([-0.5, 3.7, 100.0]),
    jnp.asarray([399.5, 4.0, 387.3]),
  )
  weights = jax.jit(roi_align.bin_weights, static_argnums=2)(
    start, stop, 28, pixels, 0, 399
  )
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  assert weights.min() > -1e-6


def test_half_precision_is_summed_in_float32():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 20, 20, 4)), jnp.bfloat16)
  boxes = jnp.asarray([[[2.0, 3, 70, 60]]])
  out, [gradient] = align([x], boxes, None, (4,), 7)
  exact, [exact_gradient] = align([x.astype('f')], boxes, None, (4,), 7)
  assert out.dtype == gradient.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
  np.testing.assert_array_equal(gradient, exact_gradient.astype(jnp.bfloat16))


def test_boxes_get_no_gradient():
  x = jnp.arange(48.0).reshape(1, 4, 4, 3)
  boxes = jnp.asarray([[[1.0, 2, 12, 13]]])
  gradient = jax.grad(
    lambda boxes: roi_align.roi_align([x], boxes, [4], 2).sum()
  )(boxes)
  assert not np.any(gradient)


def test_devices_share_the_images():
  rng = np.random.default_rng(0)
  features = [
    jnp.asarray(rng.standard_normal((4, side, side, 2)), jnp.float32)
    for side in (16, 8)
  ]
  corners = rng.uniform(0, 40, (4, 5, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(4, 24, (4, 5, 2))], -1)
  boxes = jnp.asarray(boxes, jnp.float32)
  exact = align(features, boxes, None, (4, 8), 2, 8.0)
  mesh = jax.make_mesh(
    (4,),
    ('data',),
    axis_types=(sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )
  split = sharding.NamedSharding(mesh, sharding.PartitionSpec('data'))
  with jax.set_mesh(mesh):
    given = jax.device_put((features, boxes), split)
    compiled = align.lower(*given, None, (4, 8), 2, 8.0).compile()
    result = compiled(*given, None)
  assert 'all-gather' not in compiled.as_text()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6), result, exact
  )


def test_maps_and_strides_must_agree():
  x = jnp.zeros((1, 4, 4, 3))
  with pytest.raises(ValueError, match=r'2 maps and 1 strides \(4,\)'):
    roi_align.roi_align([x, x], jnp.zeros((1, 1, 4)), (4,), 7)
