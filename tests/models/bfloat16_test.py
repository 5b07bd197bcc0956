"""Dense models in bfloat16 say what they say in float32, to its rounding.

A value of bfloat16 has 8 bits: it is off by up to 0.4 %. Here the root of the
mean square of the errors is 1 % of the deviation of the values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.models import detection
from acmix_jax.nn.heads import roi
from tests.fixtures import detectors
from tests.models import segmenters_test

DTYPES = 'float32', 'bfloat16'


def _filled(shapes):
  """Random kernels that keep the size of what they map; plain norms."""
  rng = np.random.default_rng(0)

  def fill(path, like):
    if like.ndim > 1:
      inputs = np.prod(like.shape[:-1])
      return np.float32(rng.standard_normal(like.shape) / np.sqrt(inputs))
    ones = path[-1].key not in ('bias', 'mean')
    return np.full(like.shape, ones, np.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _assert_rounded(models, x):
  """Asserts that the second of two models rounds the first."""
  variables = _filled(jax.eval_shape(models[0].init, jax.random.key(0), x))
  outputs = jax.jit(lambda v: [model.apply(v, x) for model in models])
  for exact, rounded in zip(
    *map(jax.tree.leaves, outputs(variables)), strict=True
  ):
    assert np.std(exact) > 0.1
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.var(exact))
    assert 0 < error < 0.02


@pytest.mark.parametrize(
  ('head', 'backbone'),
  [('semantic_fpn', 'resnet26_acmix'), ('upernet', 'swin_tiny_acmix')],
)
def test_segmenters(head, backbone):
  models, (images, _) = zip(
    *(segmenters_test.tiny(head, backbone, dtype=dtype) for dtype in DTYPES),
    strict=True,
  )
  _assert_rounded(models, images)


@pytest.mark.parametrize(
  ('make', 'side'),
  [
    (lambda dtype: roi.BoxHead(5, 2, 1, 16, 32, 'batch', dtype=dtype), 7),
    (lambda dtype: roi.MaskHead(5, 2, 16, dtype=dtype), 14),
  ],
)
def test_heads_of_regions(make, side):
  regions = jax.random.normal(jax.random.key(0), (6, side, side, 16))
  _assert_rounded([make(jnp.dtype(dtype)) for dtype in DTYPES], regions)


def test_losses_of_retinanet():
  arrays, spec = detectors.load('retinanet')
  model = detection.RetinaNet(
    detectors.Given(dtype=jnp.bfloat16),
    detectors.NUM_CLASSES,
    head_depth=2,
    **detectors.FIELDS,
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), detectors.blank())
  weights = detectors.state_dict(spec)
  losses = jax.jit(
    lambda variables: model.apply(
      variables,
      detectors.blank(),
      detectors.sizes(spec),
      detectors.truth(arrays),
      method='losses',
    )
  )(detectors.variables('retinanet', arrays, weights, shapes))
  for name in ('loss_cls', 'loss_bbox'):
    np.testing.assert_allclose(
      losses[name], arrays[f'losses/{name}'], rtol=5e-3, atol=1e-3
    )
