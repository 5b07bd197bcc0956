"""Windows that tile a map: Swin's attention, its bias, shift and padding."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from acmix_jax.ops import attention


def window_attention(
  q: Float[Array, 'b h w n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
  bias: Float[Array, 'n t t'],
  regions: Int[np.ndarray, 'h w'] | None = None,
  *,
  window_size: int,
) -> Float[Array, 'b h w n d']:
  """Attention of each pixel to the pixels of its own window and region.

  Args:
    q: Queries, not scaled; h and w are multiples of the window's side.
    k: Keys.
    v: Values.
    bias: Added to the scaled logits of a query (first) and a key.
    regions: What `shift_regions` gives; None: all is one region.
    window_size: Side of a window.

  Returns:
    Sums of values in the dtype of v.
  """
  b, h, w, n, d = q.shape
  side = window_size

  def cut(x):
    x = x.reshape(-1, h // side, side, w // side, side, *x.shape[3:])
    x = x.swapaxes(2, 3)
    return x.reshape(x.shape[0], -1, side**2, *x.shape[5:])

  mask = None
  if regions is not None:
    region = jnp.asarray(cut(regions[None]))[:, :, None]
    mask = region[..., :, None] == region[..., None, :]
  out = attention.attention(cut(q), cut(k), cut(v), bias[None, None], mask)
  out = out.reshape(b, h // side, w // side, side, side, n, d)
  return out.swapaxes(2, 3).reshape(q.shape)


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


def shift_regions(
  height: int, width: int, window_size: int, shift: int
) -> Int32[np.ndarray, 'h w'] | None:
  """Which pixels of a padded and rolled map may attend to one another.

  Args:
    height: Rows of the map before it is padded to whole windows.
    width: Columns before padding.
    window_size: Side of a window.
    shift: Rows and columns the padded map was rolled by, up and left.

  Returns:
    Numbers of the padded map's pixels, or None where all is one region: 0 for
    pixels that kept their place among their neighbours, 1 to 3 for those rolled
    from an opposite border, -1 for padding.
  """
  (inside_y, rolled_y), (inside_x, rolled_x) = (
    _line(size, window_size, shift) for size in (height, width)
  )
  if not shift and inside_y.all() and inside_x.all():
    return None
  regions = 2 * rolled_y[:, None] + rolled_x
  inside = inside_y[:, None] & inside_x
  return np.where(inside, regions, -1).astype(np.int32)


def _line(size: int, window_size: int, shift: int):
  """Which pixels of a padded and rolled line are not padding; are rolled."""
  length = -(-size // window_size) * window_size
  source = np.roll(np.arange(length), -shift)
  return source < size, source < shift
