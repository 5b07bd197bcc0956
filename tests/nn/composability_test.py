"""A new attention becomes an ACmix layer by the wrapper alone."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from acmix_jax.nn import acmix, attention
from acmix_jax.ops import reference


class GlobalAttention(attention.Attention):
  """Every pixel attends to every pixel, by one head."""

  features: int

  def setup(self):
    self.qkv = nn.Dense(3 * self.features)

  def project(self, x):
    q, k, v = jnp.split(self.qkv(x)[:, :, :, None], 3, axis=-1)
    return attention.Projections(q, k, v)

  def aggregate(self, projections):
    q, k, v = (
      x[:, :, :, 0] for x in (projections.q, projections.k, projections.v)
    )
    weights = jax.nn.softmax(jnp.einsum('bhwd,byxd->bhwyx', q, k), (-2, -1))
    return jnp.einsum('bhwyx,byxd->bhwd', weights, v)


def test_the_wrapper_adds_the_convolution_path():
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 7))
  layer = acmix.Hybrid(GlobalAttention(8, parent=None))
  params = layer.init(jax.random.key(1), x)['params']
  params['alpha'], params['beta'] = jnp.float32(0.3), jnp.float32(0.7)
  # Attention and convolution by hand, from the same projections.
  qkv = x @ params['attention']['qkv']['kernel']
  q, k, v = np.split(np.asarray(qkv).reshape(2, 30, 24), 3, axis=-1)
  logits = q @ k.transpose(0, 2, 1)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  maps = np.stack([q, k, v], axis=2).reshape(2, 5, 6, 3, 8)
  convolved = reference.shift_convolution(
    jnp.asarray(maps), params['fc_kernel'], params['depthwise_kernel']
  )
  want = 0.3 * (weights @ v).reshape(2, 5, 6, 8) + 0.7 * convolved
  out = layer.apply({'params': params}, x)
  np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
