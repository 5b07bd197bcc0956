"""Networks where jax promotes no dtypes by itself, or has 64-bit ones."""

import jax
import jax.numpy as jnp
import pytest

from acmix_jax import models
from acmix_jax.models import detection
from tests.fixtures import detectors


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('resnet26_acmix', {'stage_sizes': (1,)}),
    ('san10_acmix', {'stage_sizes': (1, 1, 1, 1)}),
    (
      'pvt_tiny_acmix',
      {
        'stage_sizes': (1,),
        'widths': (64,),
        'num_heads': (1,),
        'mlp_ratios': (8,),
        'reductions': (8,),
      },
    ),
    ('swin_tiny_acmix', {'stage_sizes': (2,), 'num_heads': (3,)}),
    ('semantic_fpn', {'backbone': 'resnet26', 'stage_sizes': (1, 1, 1, 1)}),
    ('upernet', {'backbone': 'resnet26', 'stage_sizes': (1, 1, 1, 1)}),
  ],
)
def test_gradients_need_no_promotion_of_dtypes(name, fields):
  model = models.create_model(name, num_classes=10, dtype='bfloat16', **fields)
  images = jax.ShapeDtypeStruct((2, 224, 224, 3), 'float32')

  def loss(params, state, images):
    logits, _ = model.apply(
      {'params': params, **state},
      images,
      train=True,
      method='training_logits' if 'backbone' in fields else None,
      mutable=list(state),
      rngs={'dropout': jax.random.key(1)},
    )
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(logits))

  with jax.numpy_dtype_promotion('strict'):
    state = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    params = state.pop('params')
    gradients = jax.eval_shape(jax.grad(loss), params, state, images)
  assert jax.tree.all(
    jax.tree.map(lambda x, like: x.dtype == like.dtype, gradients, params)
  )


_SETTINGS = {
  'strict': lambda: jax.numpy_dtype_promotion('strict'),
  'x64': lambda: jax.enable_x64(True),
}


@pytest.mark.parametrize(
  ('make', 'setting'),
  [
    (detection.RetinaNet, 'x64'),
    (detection.CascadeMaskRCNN, 'strict'),
    pytest.param(detection.RetinaNet, 'strict', marks=pytest.mark.slow),
    pytest.param(detection.CascadeMaskRCNN, 'x64', marks=pytest.mark.slow),
  ],
)
def test_detectors_keep_their_dtypes(make, setting):
  model = make(
    detectors.Given(dtype='bfloat16'),
    detectors.NUM_CLASSES,
    neck_features=8,
  )
  like = jax.ShapeDtypeStruct
  truth = detection.GroundTruth(
    like((2, 3, 4), 'float32'), like((2, 3), 'int32'), like((2, 3), 'bool')
  )
  if make is not detection.RetinaNet:
    truth = truth._replace(
      masks=like((2, 3, 28, 28), 'uint8'), regions=like((2, 3, 4), 'float32')
    )
  images = like((2, *detectors.CANVAS, 3), 'float32')
  sizes = like((2, 2), 'int32')

  def loss(params, state, images, sizes, truth):
    losses, _ = model.apply(
      {'params': params, **state},
      images,
      sizes,
      truth,
      train=True,
      method='losses',
      mutable=['batch_stats'],
      rngs={'sampling': jax.random.key(1)},
    )
    return detection.total(losses)

  with _SETTINGS[setting]():
    state = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    params = state.pop('params')
    gradients = jax.eval_shape(
      jax.grad(loss), params, state, images, sizes, truth
    )
    found = jax.eval_shape(
      model.apply, {'params': params, **state}, images, sizes
    )
  for tree in params, gradients, state:
    own = {name: x for name, x in tree.items() if name != 'backbone'}
    assert {x.dtype.name for x in jax.tree.leaves(own)} <= {'float32'}
  assert found.boxes.dtype == found.scores.dtype == 'float32'
