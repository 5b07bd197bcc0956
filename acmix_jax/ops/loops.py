"""What loops start with."""

import jax
import jax.numpy as jnp


def zeros(x: jax.Array) -> jax.Array:
  """Zeros of the shape of x in float32, made when x is known.

  XLA on CPU makes the constant zeros of all loops of a program once, when it
  starts, and copies them for each loop before anything else is computed: they
  are all in memory at the same time.
  """
  x = x.astype(jnp.float32)
  return jnp.where(x > jnp.inf, x, 0)
