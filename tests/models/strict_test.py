"""Networks where jax is told to promote no dtypes by itself."""

import jax
import jax.numpy as jnp
import pytest

from acmix_jax import models


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('resnet26_acmix', {'stage_sizes': (1,)}),
    ('san10_acmix', {'stage_sizes': (1, 1, 0, 0)}),
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
      mutable=list(state),
      rngs={'dropout': jax.random.key(1)},
    )
    return jnp.sum(logits**2)

  with jax.numpy_dtype_promotion('strict'):
    state = dict(jax.eval_shape(model.init, jax.random.key(0), images))
    params = state.pop('params')
    gradients = jax.eval_shape(jax.grad(loss), params, state, images)
  assert jax.tree.all(
    jax.tree.map(lambda x, like: x.dtype == like.dtype, gradients, params)
  )
