"""Softmax attention of every query to every key."""

import jax
import jax.numpy as jnp


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
) -> jax.Array:
  """softmax(q . k * d**-0.5 + bias) . v, logits and softmax in float32.

  Args:
    q: Queries [..., q, n, d], not scaled.
    k: Keys [..., k, n, d].
    v: Values [..., k, n, d].
    bias: Added to the logits, of their rank and broadcast to [..., n, q, k].
    mask: bool, of their rank too; where False, the key is not seen. Every
      query must see at least one key.

  Returns:
    [..., q, n, d] in the dtype of v.
  """
  q = q * q.shape[-1] ** -0.5
  logits = jnp.einsum(
    '...qnd,...knd->...nqk', q, k, preferred_element_type=jnp.float32
  )
  if bias is not None:
    logits = logits + bias.astype(jnp.float32)
  if mask is not None:
    logits = jnp.where(mask, logits, -jnp.inf)
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('...nqk,...knd->...qnd', weights, v)
