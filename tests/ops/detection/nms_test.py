"""NMS against mmdetection's, and against the greedy loop in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import sharding

from acmix_jax.ops import anchors, boxes, nms
from tests.ops.detection import fixtures

NMS = fixtures.group('nms')


def everything(scores):
  return jnp.ones(scores.shape, bool)


def kept(result, image=0):
  assert np.all(result.index[~result.valid] == 0)
  return result.index[image][result.valid[image]]


def greedy(corners, scores, threshold):
  """The definition, box by box, with the rounding of float32."""
  order = np.argsort(-scores, kind='stable')
  chosen = []
  areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
  alive = np.ones(len(corners), bool)
  for i in order:
    if alive[i]:
      chosen.append(i)
      high = np.minimum(corners[i, 2:], corners[:, 2:])
      sides = high - np.maximum(corners[i, :2], corners[:, :2])
      shared = np.prod(np.maximum(sides, 0), axis=1)
      with np.errstate(invalid='ignore'):
        overlaps = shared / (areas[i] + areas - shared)
      alive &= ~(overlaps > np.float32(threshold))
  return np.array(chosen)


def crowd(seed, number):
  """Boxes of which many overlap, with many equal scores."""
  rng = np.random.default_rng(seed)
  sides = rng.uniform(5, 60, (number, 2))
  corners = rng.uniform(0, 120, (number, 2))
  corners = np.concatenate([corners, corners + sides], axis=1)
  return corners.astype(np.float32), rng.integers(0, 50, number) / np.float32(
    50
  )


@functools.partial(jax.jit, static_argnames='most')
def suppress(corners, scores, valid, most):
  return nms.nms(corners, scores, valid, 0.5, most)


@functools.partial(jax.jit, static_argnames='most')
def suppress_in_groups(corners, scores, groups, valid, most):
  return nms.batched_nms(corners, scores, groups, valid, 0.5, most)


def test_groups_are_kept_apart_as_in_mmdetection():
  given = NMS['boxes'][None], NMS['scores'][None], NMS['ids'][None]
  valid = everything(given[1])
  result = suppress_in_groups(*given, valid, most=300)
  np.testing.assert_array_equal(kept(result), NMS['keep'])
  assert result.index.shape == (1, 200)
  result = suppress_in_groups(*given, ~valid, most=300)
  assert not np.any(result.valid)


def test_boxes_are_kept_as_in_mmdetection():
  """Of four boxes, one overlaps by the threshold exactly."""
  given = NMS['boxes'][None], NMS['scores'][None]
  result = suppress(*given, everything(given[1]), most=50)
  np.testing.assert_array_equal(kept(result), NMS['keep_class_agnostic'][:50])
  corners = jnp.zeros((1, 200, 4)).at[0, :4].set(NMS['edge_boxes'])
  scores = -jnp.arange(200.0)[None]
  result = suppress(corners, scores, scores > -4, most=50)
  np.testing.assert_array_equal(kept(result), NMS['edge_keep'])


def test_classes_are_detected_as_in_mmdetection():
  case = fixtures.group('multiclass_nms')
  scores = case['scores'][:, :-1].ravel()[None]
  groups = jnp.tile(jnp.arange(4), 60)[None]
  corners = case['boxes'].reshape(1, -1, 4)
  result = suppress_in_groups(corners, scores, groups, scores > 0.05, most=20)
  np.testing.assert_array_equal(kept(result), case['flat_inds'])
  np.testing.assert_array_equal(groups[0][kept(result)], case['labels'])


@jax.jit
def propose(scores, deltas, size):
  """Proposals of an image from the outputs of a head, level by level."""
  levels = []
  shapes = anchors.on_maps(anchors.RPN, fixtures.MAP_SIZES[anchors.RPN])
  for level, shape in enumerate(shapes):
    best, index = jax.lax.top_k(
      jax.nn.sigmoid(scores[level].ravel()), min(500, scores[level].size)
    )
    moved = deltas[level].reshape(-1, 4)[index]
    corners = boxes.decode(shape[index], moved, size=size)
    levels.append((corners, best, jnp.full(len(index), level)))
  given = [jnp.concatenate(parts)[None] for parts in zip(*levels, strict=True)]
  wide = jnp.all(given[0][..., 2:] > given[0][..., :2], axis=-1)
  result = nms.batched_nms(*given, wide, threshold=0.7, most=60)
  return result, given[0][0, result.index[0]], given[1][0, result.index[0]]


@pytest.mark.parametrize('image', range(2))
def test_region_proposals_are_those_of_mmdetection(image):
  arrays = fixtures.group('mask_rcnn/rpn', fixtures.DETECTORS)
  scores, deltas = (
    [jnp.moveaxis(arrays[f'{kind}/{i}'][image], 0, -1) for i in range(5)]
    for kind in ('cls', 'reg')
  )
  size = fixtures.IMAGE_SIZES[image]
  result, corners, scores = propose(scores, deltas, size)
  expected = arrays[f'proposals/{image}']
  assert np.all(result.valid)
  np.testing.assert_allclose(corners, expected[:, :4], rtol=0, atol=1e-4)
  np.testing.assert_allclose(scores, expected[:, 4], rtol=0, atol=1e-6)


@pytest.mark.parametrize('most', [7, 700])
def test_the_choice_is_the_greedy_one(most):
  """Images of one batch that end after different numbers of tiles."""
  corners, scores = zip(*(crowd(seed, 700) for seed in range(3)), strict=True)
  # One of few boxes, of which few are kept, and one that spreads out.
  valid = np.ones((3, 700), bool)
  valid[0, 130:] = False
  spread = corners[1] + 1000 * np.arange(700, dtype=np.float32)[:, None]
  corners = np.stack([corners[0], spread, corners[2]])
  result = suppress(corners, np.stack(scores), valid, most)
  for image in range(3):
    index = np.flatnonzero(valid[image])
    expected = greedy(corners[image][index], scores[image][index], 0.5)
    np.testing.assert_array_equal(kept(result, image), index[expected][:most])


def test_a_chain_is_settled_within_a_tile():
  """Every second of boxes that each overlap the next one alone is kept."""
  left = jnp.arange(200.0)[:, None] * 2
  corners = jnp.concatenate([left, 0 * left, left + 10, 0 * left + 5], axis=1)
  scores = -jnp.arange(200.0)[None]
  given = corners[None], scores, everything(scores)
  result = suppress(*given, most=50)
  np.testing.assert_array_equal(kept(result), np.arange(0, 100, 2))


def test_vmapped_images_and_batched_images_agree():
  """Those of a tile and less, and of different lengths."""
  corners, scores = zip(crowd(0, 200), crowd(1, 200), strict=True)
  valid = jnp.arange(200)[None] < jnp.asarray([[200], [90]])

  def one(corners, scores, valid):
    return suppress(corners[None], scores[None], valid[None], most=50)

  images = jnp.stack(corners), jnp.stack(scores), valid
  vmapped = jax.vmap(one)(*images)
  for image in range(2):
    alone = one(*(x[image] for x in images))
    np.testing.assert_array_equal(vmapped.index[image], alone.index)
    np.testing.assert_array_equal(vmapped.valid[image], alone.valid)


def test_devices_share_the_images():
  corners, scores = zip(*(crowd(seed, 200) for seed in range(2)), strict=True)
  images = jnp.stack(corners), jnp.stack(scores), jnp.ones((2, 200), bool)
  exact = [suppress(*(x[i : i + 1] for x in images), most=50) for i in (0, 1)]
  mesh = jax.make_mesh(
    (2,),
    ('data',),
    axis_types=(sharding.AxisType.Auto,),
    devices=jax.devices()[:2],
  )
  split = sharding.NamedSharding(mesh, sharding.PartitionSpec('data'))
  with jax.set_mesh(mesh):
    images = jax.device_put(images, split)
    compiled = suppress.lower(*images, most=50).compile()
    result = compiled(*images)
  # No device waits for the images of another.
  text = compiled.as_text()
  assert 'all-gather' not in text and 'all-reduce' not in text
  expected = jax.tree.map(lambda *x: jnp.concatenate(x), *exact)
  jax.tree.map(np.testing.assert_array_equal, result, expected)
