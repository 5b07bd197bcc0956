"""What is kept of a block changes memory, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from acmix_jax.nn import remat

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
    stem_size=0,
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


@pytest.mark.parametrize('name', SMALL)
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


def test_an_unknown_choice_is_refused():
  with pytest.raises(ValueError, match="remat='all'.*'products'"):
    start('resnet26_acmix', 'all')
