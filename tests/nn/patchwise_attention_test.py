"""Patchwise attention against the official code, its ACmix against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.nn import acmix, layers, patchwise_attention
from acmix_jax.ops import patchwise, windows
from acmix_jax.weights.tables import san
from tests.fixtures import official


@pytest.mark.parametrize('kernel_size', [3, 7])
def test_equals_the_official_operator(kernel_size):
  arrays = official.operator(f'san_patchwise_k{kernel_size}')
  layer = patchwise_attention.PatchwiseAttention(
    arrays['output'].shape[-1], kernel_size
  )
  shapes = jax.eval_shape(
    lambda key, x: layer.init(key, x, train=False),
    jax.random.key(0),
    arrays['input'],
  )
  names = (san.TABLE, 'backbone/stage1_0/operator', 'layer1.0.')
  stats = {'batch_stats': shapes['batch_stats']}
  stats = official.convert(arrays, 'buffer', stats, *names)
  params = {'params': shapes['params']}
  official.check_operator(
    lambda params, x: layer.apply({**params, **stats}, x, train=False),
    official.convert(arrays, 'param', params, *names),
    arrays,
    official.convert(arrays, 'grad', params, *names),
  )


def unfold(x, kernel_size):
  """Each pixel's reflected window [b, h, w, c, k*k], as PyTorch unfolds."""
  _, h, w, _ = x.shape
  pad = kernel_size // 2
  x = np.pad(x, ((0, 0), (pad,) * 2, (pad,) * 2, (0, 0)), mode='reflect')
  taps = [
    x[:, i : i + h, j : j + w]
    for i in range(kernel_size)
    for j in range(kernel_size)
  ]
  return np.stack(taps, axis=-1)


def patchwise_reference(variables, x, kernel_size, train):
  """Patchwise attention with all windows unfolded; also q, k and v."""
  params, stats = variables['params'], variables['batch_stats']

  def dense(name):
    return x @ params[name]['kernel'] + params[name]['bias']

  def norm(x, name):
    mean, var = stats[name]['mean'], stats[name]['var']
    if train:
      mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean) / np.sqrt(var + 1e-5)
    return np.maximum(x * params[name]['scale'] + params[name]['bias'], 0)

  q, k, v = dense('query'), dense('key'), dense('value')
  b, h, w, c = v.shape
  keys = unfold(k, kernel_size).reshape(b, h, w, -1)
  hidden = norm(np.concatenate([q, keys], -1), 'norm1') @ params['kernel1']
  weights = norm(hidden, 'norm2') @ params['kernel2'] + params['bias2']
  weights = weights.reshape(b, h, w, c // 8, kernel_size**2)
  out = np.empty_like(v)
  values = unfold(v, kernel_size)
  for channel in range(c):
    shared = weights[:, :, :, channel % (c // 8)]
    out[..., channel] = (values[:, :, :, channel] * shared).sum(-1)
  return out, q, k, v


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('kernel_size', [3, 5])
def test_equals_unfolded_reference(kernel_size, train):
  x = np.random.default_rng(1).standard_normal((3, 5, 6, 12), np.float32)
  layer = patchwise_attention.PatchwiseAttention(16, kernel_size)
  variables = official.random_variables(layer, x, train=train)
  got, _ = layer.apply(
    variables, jnp.asarray(x), train=train, mutable=['batch_stats']
  )
  want, *_ = patchwise_reference(variables, x, kernel_size, train)
  official.assert_relative(got, want)


def test_running_statistics_are_those_of_unfolded_keys():
  x = np.random.default_rng(1).standard_normal((4, 5, 6, 12), np.float32)
  layer = patchwise_attention.PatchwiseAttention(16, 3, norm_groups=2)
  variables = official.random_variables(layer, x, train=False)
  _, state = layer.apply(
    variables, jnp.asarray(x), train=True, mutable=['batch_stats']
  )
  _, q, k, _ = patchwise_reference(variables, x, 3, False)
  keys = unfold(k, 3).reshape(*q.shape[:3], -1)
  seen = np.concatenate([q, keys], -1).reshape(2, -1, 40)
  stats, before = state['batch_stats'], variables['batch_stats']
  for name, want in (('mean', seen.mean(1)), ('var', seen.var(1, ddof=1))):
    want = 0.9 * before['norm1'][name] + 0.1 * want.mean(0)
    official.assert_relative(stats['norm1'][name], want)


def test_acmix_takes_six_maps_of_a_quarter_of_the_channels():
  x = np.random.default_rng(1).standard_normal((2, 5, 6, 12), np.float32)
  attention = patchwise_attention.PatchwiseAttention(16, 3, parent=None)
  layer = acmix.Hybrid(attention)
  variables = official.random_variables(layer, x, train=False)
  params = variables['params']
  attended, q, k, v = patchwise_reference(
    {c: variables[c]['attention'] for c in variables},
    x,
    3,
    False,
  )
  maps = np.stack([q, k, *np.split(v, 4, axis=-1)], axis=-1)
  connected = maps @ params['fc_kernel']  # [b, h, w, d, 9]
  connected = np.pad(connected, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
  convolved = np.zeros_like(attended)
  for channel in range(16):
    for i in range(3):
      for j in range(3):
        taps = params['depthwise_kernel'][i, j, :, channel]
        here = connected[:, i : i + 5, j : j + 6, channel // 4]
        convolved[..., channel] += here @ taps
  want = params['alpha'] * attended + params['beta'] * convolved
  got = layer.apply(variables, jnp.asarray(x), train=False)
  official.assert_relative(got, want)


def test_gradients_of_the_loop_are_those_of_the_unfolded_sum():
  keys = jax.random.split(jax.random.key(2), 3)
  x, hidden = jax.random.normal(keys[0], (2, 2, 5, 6, 4))
  kernel = jax.random.normal(keys[1], (9, 4, 2))
  bias = jax.random.normal(keys[2], (9, 2))
  rows, columns = (windows.reflected(size, 1) for size in (5, 6))

  def unfolded(v, hidden, kernel, bias):
    total = 0.0
    for tap in range(9):
      i, j = divmod(tap, 3)
      shifted = v[:, rows[i : i + 5]][:, :, columns[j : j + 6]]
      weights = hidden @ kernel[tap] + bias[tap][None, None, None]
      total += shifted * jnp.tile(weights, 2)
    return total

  def loss(f):
    def run(*arguments):
      return jnp.sum(jnp.sin(f(*arguments)))

    return jax.grad(run, argnums=(0, 1, 2, 3))(x, hidden, kernel, bias)

  looped = functools.partial(patchwise.patchwise_aggregation, kernel_size=3)
  got, want = loss(looped), loss(unfolded)
  for a, b in zip(got, want, strict=True):
    official.assert_relative(a, b)


def test_bfloat16_is_close_to_float32():
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 32))
  exact = patchwise_attention.PatchwiseAttention(32, 3)
  layer = patchwise_attention.PatchwiseAttention(32, 3, dtype=jnp.bfloat16)
  variables = official.random_variables(exact, x, train=False)
  got, want = (f.apply(variables, x, train=False) for f in (layer, exact))
  assert got.dtype == jnp.bfloat16
  official.assert_relative(got.astype(np.float32), want, 0.05)


def test_errors_say_what_works():
  def run(features, kernel_size, side):
    layer = patchwise_attention.PatchwiseAttention(features, kernel_size)
    x = jax.ShapeDtypeStruct((1, side, 9, 8), jnp.float32)
    jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, train=False), x)

  with pytest.raises(ValueError, match='nearest that works: features=16'):
    run(20, 3, 9)
  with pytest.raises(ValueError, match='no centre'):
    run(16, 4, 9)
  with pytest.raises(ValueError, match='smallest side that works is 4'):
    run(16, 7, 3)
  with pytest.raises(ValueError, match='does not divide'):
    layers.batch_moments(jnp.zeros((3, 2, 2, 1)), 2)
