"""Window attention as plain operations."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import attention
from acmix_jax.ops.shifted_windows import geometry


def attend(
  problem: geometry.Problem,
  maps: Float[Array, 'b h w m d'],
  bias: Float[Array, 'n t t'],
) -> Float[Array, 'b h w n d']:
  """Cuts the maps into windows and attends within them."""
  side, mask = problem.window_size, None
  if problem.regions is not None:
    region = jnp.asarray(geometry.cut(problem.regions[None], side))
    region = region[:, :, None]
    mask = region[..., :, None] == region[..., None, :]
  q, k, v = (geometry.cut(x, side) for x in jnp.split(maps, 3, axis=3))
  out = attention.attention(q, k, v, bias[None, None], mask)
  b, _, _, heads, depth = out.shape
  out = out.reshape(b, *problem.windows, side, side, heads, depth)
  return out.swapaxes(2, 3).reshape(b, *problem.padded, heads, depth)
