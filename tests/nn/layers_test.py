"""Batch normalisation in all its modes, and convolutions of several maps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.nn import layers


def test_batch_norm_groups_have_statistics_of_their_own():
  x = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 3, 3, 5))
  norm = layers.BatchNorm(num_groups=4)
  variables = norm.init(jax.random.key(1), x, train=True)
  out, state = norm.apply(variables, x, train=True, mutable=['batch_stats'])
  groups = np.asarray(x, np.float64).reshape(4, 18, 5)
  mean, var = groups.mean(axis=1), groups.var(axis=1)
  want = (groups - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
  np.testing.assert_allclose(out.reshape(4, 18, 5), want, atol=1e-4)
  stats = state['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.1 * mean.mean(0), rtol=1e-4)
  unbiased = groups.var(axis=1, ddof=1).mean(0)
  np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * unbiased, rtol=1e-4)
  with pytest.raises(ValueError, match='does not divide'):
    norm.apply(variables, x[:6], train=True, mutable=['batch_stats'])


def test_one_value_a_channel_cannot_train():
  norm = layers.BatchNorm(num_groups=2)
  x = jnp.ones((2, 1, 1, 3))
  variables = norm.init(jax.random.key(0), x, train=False)
  norm.apply(variables, x, train=False)
  with pytest.raises(ValueError, match='one value a channel has no variance'):
    norm.apply(variables, x, train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('mode', ['running', 'frozen'])
def test_batch_norm_of_running_statistics_is_an_affine_map(mode):
  x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
  rng = np.random.default_rng(0)
  scale, bias, mean, var = rng.uniform(0.5, 2, (4, 4)).astype(np.float32)
  stats = {'mean': mean, 'var': var}
  norm = layers.BatchNorm(mode=mode)

  def apply(params):
    variables = {'params': params, 'batch_stats': stats}
    return norm.apply(variables, x, train=True, mutable=['batch_stats'])

  params = {'scale': scale, 'bias': bias}
  gradients, (y, state) = jax.grad(
    lambda params: ((out := apply(params))[0].sum(), out), has_aux=True
  )(params)
  normalised = (np.asarray(x) - mean) / np.sqrt(var + 1e-5)
  np.testing.assert_allclose(y, normalised * scale + bias, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_equal(state['batch_stats'], stats)
  learns = 0.0 if mode == 'frozen' else 1.0
  np.testing.assert_allclose(gradients['bias'], 18 * learns)
  want = learns * normalised.sum((0, 1, 2))
  np.testing.assert_allclose(gradients['scale'], want, rtol=1e-4)


def test_an_unknown_mode_is_refused():
  norm = layers.BatchNorm(mode='fixed')
  with pytest.raises(ValueError, match="mode='fixed'; 'batch', 'running'"):
    norm.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), train=False)


def test_several_maps_are_convolved_without_strides():
  maps = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 3))
  conv = layers.Conv(2, 3, strides=2)
  with pytest.raises(ValueError, match='strides=2 for 2 maps'):
    conv.init(jax.random.key(0), *maps)
  variables = layers.Conv(2, 3).init(jax.random.key(0), *maps)
  assert variables['params']['kernel'].shape == (3, 3, 5, 2)
