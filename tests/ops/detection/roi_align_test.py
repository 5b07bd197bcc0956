"""RoIAlign against mmdetection's, sample by sample, and over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, sharding

from acmix_jax.ops import bin_weights, roi_align
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
def align(features, boxes, strides, size, finest_side=56.0):
  return roi_align.roi_align(features, boxes, strides, size, finest_side)


@functools.partial(jax.jit, static_argnames=('strides', 'size'))
def align_and_pull(features, boxes, to_out, strides, size):
  """Means, and the gradients of maps and boxes."""

  def means(features, boxes):
    return align(features, boxes, strides, size, 8.0)

  out, pullback = jax.vjp(means, features, boxes)
  return out, *pullback(to_out.astype(out.dtype))


@pytest.mark.parametrize('size', [7, 14])
def test_means_and_gradient_are_those_of_mmdetection(size):
  """Boxes beyond the map, of less than a pixel, empty, and huge."""
  case = fixtures.group(str(size), UNIT)
  where, boxes, to_out = by_image(
    UNIT['rois'], 2, channels_last(case['cotangent'])
  )
  features = [channels_last(UNIT['feature'])]
  out, [gradient], to_boxes = align_and_pull(
    features, boxes, to_out, (4,), size
  )
  expected = channels_last(case['output'])
  np.testing.assert_allclose(out[where], expected, rtol=0, atol=1e-5)
  expected = channels_last(case['grad_feature'])
  np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)
  assert not np.any(to_boxes)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_other_platforms_compute_the_same(monkeypatch, platform):
  """By forms of their own: other slices of the maps, more boxes at a time."""
  case = fixtures.group('7', UNIT)
  _, boxes, to_out = by_image(UNIT['rois'], 2, channels_last(case['cotangent']))
  features = [channels_last(UNIT['feature'])]
  out, [gradient], _ = align_and_pull(features, boxes, to_out, (4,), 7)
  taken = []

  def take(*arrays, default, **forms):
    taken.extend(forms)
    return forms.get(platform, default)(*arrays)

  monkeypatch.setattr(lax, 'platform_dependent', take)

  @jax.jit
  def compute(x):
    align = functools.partial(
      roi_align.roi_align,
      boxes=boxes,
      strides=(4,),
      output_size=7,
      finest_side=8.0,
    )
    found, pullback = jax.vjp(align, x)
    return found, *pullback(to_out)

  found, [found_gradient] = compute(features)
  assert platform in taken
  np.testing.assert_allclose(found, out, rtol=0, atol=1e-6)
  np.testing.assert_allclose(found_gradient, gradient, rtol=0, atol=1e-6)


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
  out = align(pyramid, boxes, (4, 8, 16, 32), 7, 14.0)
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
  expected = np.stack([sampled(x[0], box, 4, 7) for box in BOXES])
  out, [gradient], _ = align_and_pull(
    [x], boxes, np.ones((1, 7, 7, 7, 3)), (4,), 7
  )
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
  weights = jax.jit(bin_weights.bin_weights, static_argnums=2)(
    start, stop, 28, pixels, 0, 399
  )
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  assert weights.min() > -1e-6


def test_half_precision_is_summed_in_float32():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 20, 20, 4)), jnp.bfloat16)
  box = (2, 3, 70, 60)
  boxes = jnp.asarray([[box]], jnp.float32)
  to_out = jnp.ones((1, 1, 7, 7, 4))
  out, [gradient], _ = align_and_pull([x], boxes, to_out, (4,), 7)
  assert out.dtype == gradient.dtype == jnp.bfloat16
  expected = sampled(np.asarray(x[0], np.float64), box, 4, 7)
  # One rounding of the result: half of the last of 8 bits.
  np.testing.assert_allclose(out[0, 0].astype('f'), expected, 2**-8, 1e-6)


def test_devices_share_the_images():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((4, 8, 8, 2)), jnp.float32)
  corners = rng.uniform(0, 20, (4, 3, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(4, 12, (4, 3, 2))], -1)
  arrays = [x], jnp.asarray(boxes, jnp.float32), jnp.ones((4, 3, 2, 2, 2))
  exact = align_and_pull(*arrays, (4,), 2)
  mesh = jax.make_mesh(
    (4,),
    ('data',),
    axis_types=(sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )
  split = sharding.NamedSharding(mesh, sharding.PartitionSpec('data'))
  with jax.set_mesh(mesh):
    arrays = jax.device_put(arrays, split)
    compiled = align_and_pull.lower(*arrays, (4,), 2).compile()
    result = compiled(*arrays)
  assert 'all-gather' not in compiled.as_text()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6), result, exact
  )


def test_maps_and_strides_must_agree():
  x = jnp.zeros((1, 4, 4, 3))
  with pytest.raises(ValueError, match=r'2 maps and 1 strides \(4,\)'):
    roi_align.roi_align([x, x], jnp.zeros((1, 1, 4)), (4,), 7)
