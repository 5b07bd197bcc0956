"""Attention of each pixel over the window around it, reflected at borders.

Exact implementations behind `local_attention`:
  patches: copies the window of each query (k*k times the memory of k and v).
  tiles: a square of queries shares the square of keys its windows cover; two
    small matrix products and a constant mask, no copy of a window.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from acmix_jax.ops import windows

# Side of a tile in queries. A larger tile shares more keys and wastes more
# products: a query uses k*k of the (tile + k - 1)**2 it is multiplied with.
_TILE = 7


def local_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  position: jax.Array | None = None,
  *,
  kernel_size: int = 7,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'tiles',
) -> jax.Array:
  """Softmax attention over a window of each pixel (paper eq. 1, 2).

  logits = d**-0.5 * q . (k + position[query] - position[key]), softmax over
  the kernel_size**2 keys in float32, then the weighted sum of v. Keys, values
  and positions beyond the border are those of the mirrored pixel.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py. Differs: NHWC; any float
  dtype; odd maps at stride 2 give ceil(h / 2) rows (the source fails); the
  dilation spaces the keys (the source ignores it in the window and fails).

  Args:
    q: queries [b, h, w, n, d], not scaled; every `strides`-th pixel is used.
    k: keys [b, h, w, n, d].
    v: values [b, h, w, n, d].
    position: encoding of each pixel [h, w, d], shared by images and heads.
    kernel_size: odd side of the window in keys.
    strides: pixels between queries.
    dilation: pixels between neighbouring keys of a window.
    implementation: a name of `IMPLEMENTATIONS`.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), n, d] in the dtype of v.

  Raises:
    ValueError: shapes that disagree, a window that is not centred, a map too
      small to reflect, or an unknown implementation.
  """
  _check(q, k, v, position, kernel_size, strides, dilation, implementation)
  if position is not None:
    # q . position[query] is the same for all keys of a window, so it leaves
    # the softmax unchanged: only the key's side of the term is needed.
    k = k - position[None, :, :, None].astype(k.dtype)
  q = q[:, ::strides, ::strides] * q.shape[-1] ** -0.5
  attend = IMPLEMENTATIONS[implementation]
  return attend(q, k, v, kernel_size, strides, dilation)


def _check(q, k, v, position, kernel_size, strides, dilation, implementation):
  name = 'local_attention'
  if q.ndim != 5 or not q.shape == k.shape == v.shape:
    raise ValueError(
      f'{name}: q {q.shape}, k {k.shape}, v {v.shape}; three equal shapes '
      '[b, h, w, n, d] are needed.'
    )
  h, w, d = q.shape[1], q.shape[2], q.shape[4]
  if position is not None and position.shape != (h, w, d):
    raise ValueError(
      f'{name}: position {position.shape}; [h, w, d] = {(h, w, d)} is needed.'
    )
  windows.check_window(name, kernel_size, strides, dilation)
  windows.check_reflection(name, h, w, kernel_size, dilation)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'{name}: no implementation {implementation!r}; known: '
      f'{", ".join(IMPLEMENTATIONS)}.'
    )


def _reflect(x: jax.Array, pad: int) -> jax.Array:
  width = ((0, 0), (pad, pad), (pad, pad)) + ((0, 0),) * (x.ndim - 3)
  return jnp.pad(x, width, mode='reflect')


def _patches(q, k, v, kernel_size, strides, dilation):
  b, h, w, n, d = q.shape
  pad = windows.padding(kernel_size, dilation)

  def unfold(x):
    x = x.reshape(*x.shape[:3], n * d)
    # A convolution that only copies: tools.cost skips it by this name.
    with jax.named_scope('unfold'):
      x = lax.conv_general_dilated_patches(
        _reflect(x, pad),
        filter_shape=(kernel_size, kernel_size),
        window_strides=(strides, strides),
        padding='VALID',
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
    return x.reshape(b, h, w, n, d, kernel_size**2)

  logits = jnp.einsum(
    'bhwnd,bhwndt->bhwnt', q, unfold(k), preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('bhwnt,bhwndt->bhwnd', weights, unfold(v))


def _tiles(q, k, v, kernel_size, strides, dilation):
  _, h, w, n, d = q.shape
  pad = windows.padding(kernel_size, dilation)
  reach = (kernel_size - 1) * dilation + 1
  span = (_TILE - 1) * strides + reach
  rows, columns = math.ceil(h / _TILE), math.ceil(w / _TILE)

  def cover(x):
    x = _overlapping(_reflect(x, pad), 1, rows, _TILE * strides, span)
    return _overlapping(x, 3, columns, _TILE * strides, span)

  q = _overlapping(
    _overlapping(q, 1, rows, _TILE, _TILE), 3, columns, _TILE, _TILE
  )
  logits = jnp.einsum(
    'byixjnd,byuxvnd->byxnijuv',
    q,
    cover(k),
    preferred_element_type=jnp.float32,
  )
  mask = _window_mask(kernel_size, strides, dilation)
  mask = mask[:, None, :, None] & mask[None, :, None, :]
  logits = jnp.where(mask[None, None, None, None], logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(v.dtype)
  out = jnp.einsum('byxnijuv,byuxvnd->byixjnd', weights, cover(v))
  b = out.shape[0]
  return out.reshape(b, rows * _TILE, columns * _TILE, n, d)[:, :h, :w]


def _overlapping(
  x: jax.Array, axis: int, count: int, step: int, span: int
) -> jax.Array:
  """Splits an axis into `count` pieces of `span`, one each `step`, as 2 axes.

  Whole blocks are sliced and concatenated: the gradient is then a sum of
  padded slices, where that of a gather would be a slow scatter.
  """
  blocks = math.ceil(span / step)
  length = (count + blocks - 1) * step
  missing = max(0, length - x.shape[axis])
  width = [(0, 0)] * x.ndim
  width[axis] = (0, missing)
  x = lax.slice_in_dim(jnp.pad(x, width), 0, length, axis=axis)
  shape = (*x.shape[:axis], count + blocks - 1, step, *x.shape[axis + 1 :])
  x = x.reshape(shape)
  pieces = [lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(blocks)]
  return lax.slice_in_dim(
    jnp.concatenate(pieces, axis=axis + 1), 0, span, axis=axis + 1
  )


def _window_mask(kernel_size: int, strides: int, dilation: int) -> np.ndarray:
  """Whether a row of keys is in the window of a row of queries [tile, span]."""
  span = (_TILE - 1) * strides + (kernel_size - 1) * dilation + 1
  offset = np.arange(span) - strides * np.arange(_TILE)[:, None]
  inside = (offset >= 0) & (offset <= (kernel_size - 1) * dilation)
  return inside & (offset % dilation == 0)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
  'patches': _patches,
  'tiles': _tiles,
}
