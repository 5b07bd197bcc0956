"""RetinaNet against mmdetection's, from given stages on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.models import detection
from acmix_jax.models.detection import retinanet
from acmix_jax.ops import anchors as anchor_ops
from tests.fixtures import detectors, official

IMAGES = range(3)


@pytest.fixture(scope='module')
def fixture():
  return detectors.load('retinanet')


@pytest.fixture(scope='module')
def model():
  return detection.RetinaNet(
    detectors.Given(),
    detectors.NUM_CLASSES,
    head_depth=2,
    max_detections=50,
    **detectors.FIELDS,
  )


@pytest.fixture(scope='module')
def variables(model, fixture):
  arrays, spec = fixture
  shapes = jax.eval_shape(model.init, jax.random.key(0), detectors.blank())
  weights = detectors.state_dict(spec)
  return detectors.variables('retinanet', arrays, weights, shapes)


@pytest.fixture(scope='module')
def trained(model, variables, fixture):
  """Losses and gradients."""
  arrays, spec = fixture
  truth, sizes = detectors.truth(arrays), detectors.sizes(spec)

  def total(params):
    found = model.apply(
      {'params': params}, detectors.blank(), sizes, truth, method='losses'
    )
    return detection.total(found), found

  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  (total, found), gradients = run(variables['params'])
  return {**found, 'total': total}, gradients


@pytest.mark.parametrize('name', ['loss_cls', 'loss_bbox', 'total'])
def test_losses_equal_the_source(trained, fixture, name):
  official.assert_relative(trained[0][name], fixture[0][f'losses/{name}'])


def test_gradients_equal_the_source(trained, fixture):
  detectors.assert_gradients('retinanet', trained[1], fixture[0])


def test_targets_equal_the_source(fixture):
  arrays, spec = fixture
  sizes = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
  anchors = anchor_ops.on_maps(anchor_ops.RETINANET, sizes)
  truth = detectors.truth(arrays)
  own = np.stack([arrays[f'valid/{i}'] for i in IMAGES])
  padded = np.array([x['pad_shape'][:2] for x in spec['images']])
  np.testing.assert_array_equal(
    anchor_ops.within_padding(anchor_ops.RETINANET, sizes, padded), own
  )
  targets = jax.jit(retinanet._targets, static_argnums=3)(
    jnp.concatenate(anchors), own, truth, detectors.NUM_CLASSES
  )
  for i in IMAGES:
    want = {
      key: arrays[f'targets/{i}/{key}']
      for key in ('labels', 'label_weights', 'bbox_targets', 'bbox_weights')
    }
    np.testing.assert_array_equal(targets.used[i], want['label_weights'])
    np.testing.assert_array_equal(targets.positive[i], want['bbox_weights'])
    np.testing.assert_array_equal(
      np.where(own[i], targets.labels[i], detectors.NUM_CLASSES),
      want['labels'],
    )
    np.testing.assert_allclose(
      targets.deltas[i], want['bbox_targets'], atol=1e-5
    )


def test_detections_equal_the_source(model, variables, fixture):
  arrays, spec = fixture
  found = jax.jit(model.apply)(
    variables, detectors.blank(), detectors.sizes(spec)
  )
  assert found.valid.all() and found.masks is None
  for i in IMAGES:
    want = arrays[f'detections/{i}/input/boxes_scores']
    np.testing.assert_allclose(found.boxes[i], want[:, :4], atol=1e-3)
    np.testing.assert_allclose(found.scores[i], want[:, 4], atol=1e-5)
    np.testing.assert_array_equal(
      found.labels[i], arrays[f'detections/{i}/input/labels']
    )
