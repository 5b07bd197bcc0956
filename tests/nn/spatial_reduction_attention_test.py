"""Spatial-reduction attention against the official code and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from acmix_jax.nn import acmix, spatial_reduction_attention, transformer
from acmix_jax.weights.tables import pvt
from tests.fixtures import official

Attention = spatial_reduction_attention.SpatialReductionAttention


def test_equals_the_official_operator():
  arrays = official.operator('pvt_attention_sr2')
  layer, grid = Attention(64, 2, 2), arrays['input'].shape[1:3]

  def apply(params, x):
    y = layer.apply(params, x.reshape(len(x), -1, 64), grid=grid)
    return y.reshape(x.shape)

  x = arrays['input'].reshape(2, -1, 64)
  shapes = official.random_variables(layer, x, grid=grid)
  names = (pvt.TABLE, 'backbone/stage1_0/operator', 'block1.0.attn.')
  official.check_operator(
    apply,
    official.convert(arrays, 'param', shapes, *names),
    arrays,
    official.convert(arrays, 'grad', shapes, *names),
  )


def reference(params, x, grid, heads, reduction):
  """PVT's attention of one sequence; also q, k and v maps [h, w, c]."""
  (h, w), c = grid, x.shape[-1]
  tokens = len(x) - h * w

  def dense(name, x):
    return x @ params[name]['kernel'] + params[name]['bias']

  pixels = x[tokens:].reshape(h, w, c)
  rows, columns = h // reduction, w // reduction
  keys = pixels.reshape(-1, c)
  if reduction > 1:
    keys = np.empty((rows, columns, c), x.dtype)
    for y in range(rows):
      for z in range(columns):
        top, left = y * reduction, z * reduction
        patch = pixels[top : top + reduction, left : left + reduction]
        keys[y, z] = np.einsum('ijc,ijcf->f', patch, params['reduce']['kernel'])
    keys = (keys + params['reduce']['bias']).reshape(-1, c)
    mean, var = keys.mean(-1, keepdims=True), keys.var(-1, keepdims=True)
    norm = params['reduce_norm']
    keys = (keys - mean) / np.sqrt(var + 1e-5) * norm['scale'] + norm['bias']
  keys = np.concatenate([x[:tokens], keys])
  q = dense('query', x)
  k, v = np.split(dense('key_value', keys), 2, axis=-1)
  out = np.empty_like(q)
  for head in np.split(np.arange(c), heads):
    logits = q[:, head] @ k[:, head].T / len(head) ** 0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head]
  coarse = (rows, columns, c)
  maps = (
    q[tokens:].reshape(h, w, c),
    *(y[tokens:].reshape(coarse) for y in (k, v)),
  )
  return dense('out', out), maps


@pytest.mark.parametrize(
  ('grid', 'tokens', 'reduction'),
  [((4, 6), 0, 2), ((5, 7), 0, 2), ((3, 4), 1, 1), ((6, 9), 2, 3)],
)
def test_acmix_takes_keys_and_values_repeated_to_the_grid(
  grid, tokens, reduction
):
  (h, w), heads, c = grid, 2, 8
  rng = np.random.default_rng(3)
  x = rng.standard_normal((2, tokens + h * w, c), np.float32)
  layer = acmix.Hybrid(Attention(c, heads, reduction, parent=None))
  variables = official.random_variables(layer, x, grid=grid)
  params = variables['params']
  got = layer.apply(variables, jnp.asarray(x), grid=grid)
  for image, sequence in zip(got, x, strict=True):
    attended, (q, k, v) = reference(
      params['attention'], sequence, grid, heads, reduction
    )
    rows = np.minimum(np.arange(h) // reduction, len(k) - 1)
    columns = np.minimum(np.arange(w) // reduction, k.shape[1] - 1)
    fine = [q, *(y[rows][:, columns] for y in (k, v))]
    maps = np.concatenate([y.reshape(h, w, heads, -1) for y in fine], axis=2)
    connected = np.einsum('yxmd,mt->yxdt', maps, params['fc_kernel'])
    connected = np.pad(connected, ((1, 1), (1, 1), (0, 0), (0, 0)))
    convolved = np.zeros((h, w, c), np.float32)
    for channel in range(c):
      for i in range(3):
        for j in range(3):
          shifted = connected[i : i + h, j : j + w, channel // heads]
          convolved[..., channel] += (
            shifted @ params['depthwise_kernel'][i, j, :, channel]
          )
    want = params['alpha'] * attended
    want[tokens:] += params['beta'] * convolved.reshape(-1, c)
    official.assert_relative(image, want)


def test_bfloat16_is_close_to_float32():
  x = jax.random.normal(jax.random.key(1), (2, 17, 32))
  exact, layer = (
    acmix.Hybrid(Attention(32, 2, 1, dtype, parent=None))
    for dtype in (None, jnp.bfloat16)
  )
  variables = official.random_variables(exact, x, grid=(4, 4))
  got, want = (f.apply(variables, x, grid=(4, 4)) for f in (layer, exact))
  assert got.dtype == jnp.bfloat16
  official.assert_relative(got.astype(np.float32), want, 0.05)


def test_errors_say_what_works():
  x = jnp.zeros((1, 15, 8))
  with pytest.raises(ValueError, match='nearest that works: features=6'):
    Attention(8, 3).init(jax.random.key(0), x, grid=(3, 5))
  with pytest.raises(ValueError, match='3x5 map has no patch of 4x4'):
    Attention(8, 2, 4).init(jax.random.key(0), x, grid=(3, 5))
  with pytest.raises(ValueError, match='reduction=0'):
    Attention(8, 2, 0).init(jax.random.key(0), x, grid=(3, 5))


class _Ones(nn.Module):
  @nn.compact
  def __call__(self, x):
    return jnp.ones_like(x)


def test_drop_path_skips_branches_by_image_and_keeps_the_mean():
  x = jnp.zeros((512, 3, 4))
  block = transformer.Block(_Ones(parent=None), drop_path=0.25)
  variables = block.init(jax.random.key(0), x, train=False)
  variables = jax.tree.map(jnp.zeros_like, variables)
  out = block.apply(
    variables, x, train=True, rngs={'dropout': jax.random.key(1)}
  )
  kept = np.asarray(out[:, 0, 0])
  same = np.broadcast_to(kept[:, None, None], x.shape)
  np.testing.assert_array_equal(out, same)
  np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)
  assert abs(kept.mean() - 1) < 0.1
  still = block.apply(variables, x, train=False)
  np.testing.assert_array_equal(still, np.ones(x.shape))
