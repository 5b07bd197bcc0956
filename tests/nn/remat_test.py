"""What is kept of a block changes memory, and nothing else."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import acmix_jax
from acmix_jax.nn import (
  acmix,
  attention,
  local_attention,
  patchwise_attention,
  remat,
  spatial_reduction_attention,
  window_attention,
)
from tests.fixtures import official

SIDE = 16
# A block or two, as narrow as its family can be.
SMALL = {
  'resnet26_acmix': dict(
    stage_sizes=(1,),
    width=8,
    num_heads=2,
    kernel_att=3,
    stem='small',
    convolution_implementation='grouped',
  ),
  'san10': dict(
    stage_sizes=(1,),
    widths=(32,),
    kernel_sizes=(3,),
    stem_size=1,
    stem_width=32,
  ),
  'pvt_tiny': dict(
    stage_sizes=(1,),
    image_size=SIDE,
    widths=(8,),
    num_heads=(2,),
    mlp_ratios=(2,),
    reductions=(2,),
    drop_path=0.4,
  ),
  'swin_tiny_acmix': dict(
    stage_sizes=(2,),
    width=8,
    num_heads=(2,),
    window_size=2,
    drop_path=0.4,
    convolution_implementation='grouped',
  ),
}


def make(name, remat):
  return acmix_jax.create_model(name, num_classes=5, remat=remat, **SMALL[name])


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(name, remat):
  images = jax.random.normal(jax.random.key(1), (4, SIDE, SIDE, 3))
  return make(name, remat).init(jax.random.key(0), images), images


def loss(model, params, state, images):
  logits, state = model.apply(
    {'params': params, **state},
    images,
    train=True,
    mutable=list(state),
    rngs={'dropout': jax.random.key(2)},
  )
  return jnp.mean(logits**3), state


def compute(name, remat, variables, images):
  state = dict(variables)
  params = state.pop('params')
  update = jax.value_and_grad(
    functools.partial(loss, make(name, remat)), has_aux=True
  )
  return jax.jit(update)(params, state, images)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name == 'san10'))
    for name in SMALL
  ],
)
def test_loss_gradients_and_statistics_do_not_depend_on_remat(name):
  variables, images = start(name, 'none')
  want = compute(name, 'none', variables, images)
  for choice in remat.REMATS[1:]:
    shapes = jax.eval_shape(functools.partial(start, name, choice))[0]
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    got = compute(name, choice, variables, images)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(
        x, y, rtol=1e-4, atol=1e-5 * max(1e-3, abs(y).max())
      ),
      got,
      want,
    )


@pytest.mark.parametrize('name', SMALL)
def test_each_choice_keeps_less_than_the_one_before(name):
  variables, images = jax.eval_shape(functools.partial(start, name, 'none'))
  state = dict(variables)
  params = state.pop('params')

  def kept(choice):
    _, pullback = jax.eval_shape(
      lambda params, state, images: jax.vjp(
        lambda x: loss(make(name, choice), x, state, images)[0], params
      ),
      params,
      state,
      images,
    )
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

  sizes = [kept(choice) for choice in remat.REMATS]
  assert sizes[0] > sizes[1] > sizes[2] > 0


ATTENTIONS = {
  'local': (local_attention.LocalAttention(8, 2, 3, parent=None), {}),
  'patchwise': (
    patchwise_attention.PatchwiseAttention(16, 3, parent=None),
    {'train': True},
  ),
  'reduction': (
    spatial_reduction_attention.SpatialReductionAttention(8, 2, 2, parent=None),
    {'grid': (4, 6)},
  ),
  'window': (
    window_attention.WindowAttention(8, 2, 2, parent=None),
    {'size': (3, 6), 'shift': 1},
  ),
}


class Checkpointed(attention.Attention):
  """An attention with a checkpoint around each stage."""

  inner: attention.Attention

  def project(self, x, **context):
    project = nn.remat(lambda self, x: self.inner.project(x, **context))
    return project(self, x)

  def aggregate(self, projections):
    return nn.remat(lambda self, y: self.inner.aggregate(y))(self, projections)

  def convolution_maps(self, projections):
    return self.inner.convolution_maps(projections)


# The others are of one map as 'local', or of tokens as 'window'.
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(x, marks=[pytest.mark.slow] * (x not in ('local', 'window')))
    for x in ATTENTIONS
  ],
)
def test_projections_pass_checkpoints(name):
  inner, context = ATTENTIONS[name]
  shape = (2, 24, 8) if name == 'reduction' else (2, 4, 6, 8)
  x = jax.random.normal(jax.random.key(0), shape)
  layer = acmix.Hybrid(inner)
  variables = official.random_variables(layer, x, **context)

  def gradients(layer, variables):
    def loss(params):
      y, _ = layer.apply(
        {**variables, 'params': params}, x, mutable=['batch_stats'], **context
      )
      return jnp.sum(y**2)

    return jax.grad(loss)(variables['params'])

  want = gradients(layer, variables)
  layer = acmix.Hybrid(Checkpointed(inner, parent=None))
  nested = {
    collection: {**tree, 'attention': {'inner': tree['attention']}}
    for collection, tree in variables.items()
  }
  got = gradients(layer, nested)
  got['attention'] = got['attention']['inner']
  chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-3)


def test_an_unknown_choice_is_refused():
  with pytest.raises(ValueError, match="remat='all'.*'products'"):
    start('resnet26_acmix', 'all')
