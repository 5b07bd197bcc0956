"""Softmax attention of every query to every key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
  q: Float[Array, '*b l n d'],
  k: Float[Array, '*b lk n d'],
  v: Float[Array, '*b lk n d'],
  bias: Float[Array, '*#b #n #l #lk'] | None = None,
  mask: Bool[Array, '*#b #n #l #lk'] | None = None,
) -> Float[Array, '*b l n d']:
  """softmax(q . k * d**-0.5 + bias) . v, logits and softmax in float32.

  Args:
    q: Queries, not scaled.
    k: Keys.
    v: Values.
    bias: Added to the logits.
    mask: Where False, the key is not seen. Every query must see at least one
      key.

  Returns:
    Sums of values in the dtype of v.
  """
  q = q * q.shape[-1] ** -0.5
  logits = jnp.einsum(
    '...qnd,...knd->...nqk', q, k, preferred_element_type=jnp.float32
  )
  if bias is not None:
    logits = logits + bias.astype(jnp.float32)
  if mask is not None:
    # Finite, for `jax_debug_infs`; the weight is 0 as that of -inf would be.
    logits = jnp.where(mask, logits, jnp.float32(-1e30))
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('...nqk,...knd->...qnd', weights, v)
