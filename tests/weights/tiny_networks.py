"""Small networks of all families with random variables, and their logits."""

import functools

import jax
import numpy as np

import acmix_jax
from acmix_jax.weights import names
from tests.models import models_test

# Networks without ACmix whose attention becomes a path of it.
PARENTS = ('resnet26_attention', 'san10', 'pvt_tiny', 'swin_tiny')


def fields(name):
  """Fields of the small network."""
  [found] = (
    fields
    for family, (fields, _) in models_test.TINY.items()
    if name.startswith(family)
  )
  return found


@functools.cache
def _model(name, block_operators):
  return acmix_jax.create_model(
    name, 10, block_operators=block_operators, **fields(name)
  )


@functools.cache
def _apply(name, block_operators):
  return jax.jit(_model(name, block_operators).apply)


def shapes(model):
  """Shapes of the variables by name."""
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
  return names.flatten(jax.eval_shape(model.init, jax.random.key(0), images))


@functools.cache
def _random(name):
  rng = np.random.default_rng(0)

  def draw(name, shape):
    low, high = (0.5, 1.5) if name.endswith(('var', 'scale')) else (-0.3, 0.3)
    return rng.uniform(low, high, shape).astype(np.float32)

  return {
    key: draw(key, x.shape) for key, x in shapes(_model(name, ())).items()
  }


def variables(name):
  """Random variables."""
  return names.unflatten(_random(name))


def logits(name, variables, block_operators=()):
  """Logits of two random images."""
  _, images = models_test.tiny(name)
  return np.asarray(_apply(name, block_operators)(variables, images[:2]))
