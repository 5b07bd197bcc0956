"""Attention within windows, and its bias."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from acmix_jax.ops import implementations
from acmix_jax.ops.shifted_windows import geometry, pallas_tpu, plain

# In order of preference.
IMPLEMENTATIONS = (
  # A fused kernel: the logits never leave the chip.
  implementations.Implementation(
    'pallas', ('tpu',), pallas_tpu.why_not, pallas_tpu.attend
  ),
  implementations.Implementation(
    'plain', implementations.PLATFORMS, implementations.always, plain.attend
  ),
  # Slow, for tests.
  implementations.Implementation(
    'pallas', ('cpu', 'rocm'), pallas_tpu.why_not, pallas_tpu.interpret
  ),
)


def window_attention(
  maps: Float[Array, 'b h w m d'],
  bias: Float[Array, 'n t t'],
  *,
  window_size: int,
  size: tuple[int, int] | None = None,
  shift: int = 0,
  implementation: str = 'auto',
) -> Float[Array, 'b h w n d']:
  """Attention of each pixel to the pixels of its own window and region.

  Args:
    maps: Queries, not scaled, keys and values, m = 3 * n: n maps of each; h and
      w are multiples of the window's side.
    bias: Added to the scaled logits of a query (first) and a key.
    window_size: Side of a window.
    size: Height and width of the map but for its padding; None: it has none.
    shift: Rows and columns the map was rolled by: see `shift_regions`.
    implementation: 'auto', or a name of `IMPLEMENTATIONS`.

  Returns:
    Sums of values in the dtype of the maps.

  Raises:
    ValueError: The map is not made of whole windows, or the implementation is
      unknown or cannot serve.
  """
  geometry.check_whole('window_attention', *maps.shape[1:3], window_size)
  size = size or maps.shape[1:3]
  problem = geometry.describe(maps, bias, window_size, size, shift)
  return implementations.run(
    IMPLEMENTATIONS,
    'window_attention',
    implementation,
    problem,
    *(maps, bias.astype(jnp.float32)),
  )


def relative_bias(
  table: Float[Array | np.ndarray, 'offsets n'], window_size: int
) -> Float[Array, 'n t t']:
  """The bias of each pair of pixels of a window, from one entry an offset.

  The pixels of a window see the table shifted by their own position: 2 * s
  slices, whose gradient is a sum where that of a gather would be a scatter.

  Args:
    table: Entries of the (2s - 1)**2 offsets (query - key), row-major from
      1 - s to s - 1.
    window_size: Side s of a window.

  Returns:
    The bias of a query (first) and a key.
  """
  s = window_size
  offsets = table.reshape(2 * s - 1, 2 * s - 1, -1)[::-1, ::-1]
  for axis in (0, 2):  # [y, x, n] -> [i, u, x, n] -> [i, u, j, v, n]
    offsets = jnp.stack(
      [
        lax.slice_in_dim(offsets, s - 1 - i, 2 * s - 1 - i, axis=axis)
        for i in range(s)
      ],
      axis=axis,
    )
  return offsets.transpose(4, 0, 2, 1, 3).reshape(-1, s * s, s * s)
