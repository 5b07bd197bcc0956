"""Whole detectors of Swin's and PVT's code, from state dict to detections."""

import jax
import numpy as np
import pytest

import acmix_jax
from acmix_jax.models.detection import regions
from tests.fixtures import detectors, official

# No anchor and no region is left out of the losses, and no proposal beside the
# number that the fixtures have.
ALL = {'rpn_samples': 100_000, 'region_samples': 800, 'num_proposals': 480}
FIELDS = {'retinanet': {}, 'mask_rcnn': ALL, 'cascade_mask_rcnn': ALL}
# The cascade's losses take as long as all the rest; mask_rcnn_test has them.
WITH_LOSSES = ('retinanet', 'mask_rcnn')


@pytest.mark.parametrize('name', FIELDS)
def test_detections_and_losses_equal_the_source(name, monkeypatch):
  # No fixture has more positives: 50 of the masks are computed, not 200.
  monkeypatch.setattr(regions, 'POSITIVE_FRACTION', 1 / 16)
  weights, images, truth, arrays, spec = detectors.whole(name)
  fields = {
    'backbone': spec['backbone'],
    'num_classes': spec['num_classes'],
    'images_per_group': 0,
    **FIELDS[name],
  }
  variables = acmix_jax.from_torch(name, weights, **fields)
  model = acmix_jax.create_model(name, **fields)
  sizes = np.array([[spec['height'], spec['width']]])

  @jax.jit
  def run(variables, images):
    def detect_and_learn(model):
      found, losses = model(images, sizes), {}
      if name in WITH_LOSSES:
        losses = model.losses(images, sizes, truth, train=False)
      return found, losses

    return model.apply(
      variables,
      method=detect_and_learn,
      rngs={'sampling': jax.random.key(0)},
    )

  found, losses = run(variables, images)
  found = jax.tree.map(lambda x: np.asarray(x[0]), found)
  assert found.valid.all()
  # The source gives those with masks by class.
  order = np.arange(len(found.scores))
  if found.masks is not None:
    order = np.lexsort((-found.scores, found.labels))
  np.testing.assert_array_equal(found.labels[order], arrays['labels'])
  # The fixtures' scale factor is 1 / 2.
  np.testing.assert_allclose(
    2 * found.boxes[order],
    arrays['detections'][:, :4],
    atol=max(1e-3, 2 * spec['noise_1e6_moves']),
  )
  np.testing.assert_allclose(
    found.scores[order], arrays['detections'][:, 4], atol=1e-5
  )
  for key in losses:
    official.assert_relative(losses[key], arrays[f'losses/{key}'], 2e-5, key)
