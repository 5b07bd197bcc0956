"""Annotated shapes are checked in tests."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from acmix_jax import models
from acmix_jax.nn import layers
from acmix_jax.ops import windows
from acmix_jax.tasks import classification

CALLS = {
  'ops': lambda: windows.reflect(jnp.zeros((5, 5)), 1),
  'nn': lambda: layers.batch_moments(jnp.zeros(5)),
  'models': lambda: models.create_model('resnet26').init(
    jax.random.key(0), jnp.zeros((64, 64, 3))
  ),
  'tasks': lambda: classification.cross_entropy(
    jnp.zeros((2, 3)), jnp.zeros((2, 4))
  ),
}


@pytest.mark.parametrize('package', CALLS)
def test_a_wrong_shape_is_refused_in_each_package(package):
  with pytest.raises(jaxtyping.TypeCheckError, match=f'acmix_jax.{package}'):
    CALLS[package]()
