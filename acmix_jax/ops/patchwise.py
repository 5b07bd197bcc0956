"""Patchwise attention: sums over the window around each pixel, reflected.

Each operation here is a sum of one term a tap (a position of the window), each
a function of the map shifted to that tap. One loop over the taps adds them up,
and computes each again in the backward pass: neither direction ever holds the
k*k shifted copies of a map, nor its k*k attention weights. Taps are numbered
in rows from the top left of the window.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from acmix_jax.ops import cost_marks, windows


def window_moments(
  x: jax.Array, kernel_size: int, num_groups: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Batch statistics of the k*k shifted copies of a reflected map.

  A copy holds each row and each column of the map a known number of times, so
  the sums over it are products of the sum over images with these numbers.

  Args:
    x: map [b, h, w, c].
    kernel_size: odd side k of the window.
    num_groups: groups of images with statistics of their own.

  Returns:
    The means of the copies and of their squares, float32 [groups, k*k, c].
  """
  _, h, w, c = x.shape
  x = x.astype(jnp.float32).reshape(num_groups, -1, h, w, c)
  images = jnp.stack([x.mean(axis=1), jnp.square(x).mean(axis=1)])
  rows = _multiplicity(h, kernel_size) / np.float32(h)
  columns = _multiplicity(w, kernel_size) / np.float32(w)
  means = jnp.einsum(
    'yi,xj,mgijc->mgyxc', rows, columns, images, precision='highest'
  )
  mean, square = means.reshape(2, num_groups, kernel_size**2, c)
  return mean, square


def window_dense(
  x: jax.Array, factor: jax.Array, offset: jax.Array, kernel: jax.Array
) -> jax.Array:
  """Scales and rectifies the window of each pixel, then a linear layer of it.

  out = sum over taps t of relu(x[t] * factor[t] + offset[t]) @ kernel[t].

  Args:
    x: map [b, h, w, c].
    factor: float32 [groups, k*k, c]; a group is b / groups images.
    offset: float32 [groups, k*k, c].
    kernel: [k*k, c, m].

  Returns:
    float32 [b, h, w, m].
  """
  groups, taps, c = factor.shape

  def term(x, tap, shared):
    del shared
    factor, offset, kernel = tap
    y = x.reshape(groups, -1, c) * factor + offset
    y = jax.nn.relu(y).astype(x.dtype).reshape(x.shape)
    return jnp.matmul(
      y, kernel.astype(x.dtype), preferred_element_type=jnp.float32
    )

  factor, offset = (
    jnp.swapaxes(a, 0, 1).reshape(taps, groups, 1, c) for a in (factor, offset)
  )
  return _window_sum(term, x, (factor, offset, kernel), ())


def patchwise_aggregation(
  v: jax.Array, hidden: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
  """Sums the window of v with weights that are linear in hidden features.

  out[c] = sum over taps t of v[t, c] * (hidden @ kernel[t] + bias[t])[c % g].

  Source: hszhao/SAN lib/sa/functions/aggregation_refpad.py and the last layer
  of `conv_w`. The weights are not normalised; channel c has weight plane
  c mod g, so that planes are interleaved, not contiguous.

  Args:
    v: values [b, h, w, c], c a multiple of g.
    hidden: [b, h, w, m].
    kernel: [k*k, m, g].
    bias: [k*k, g].

  Returns:
    [b, h, w, c] in the dtype of v.
  """
  taps, _, planes = kernel.shape
  shape = (*v.shape[:3], -1, planes)

  def term(v, tap, hidden):
    kernel, bias = tap
    weights = jnp.matmul(
      hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    weights = (weights + bias)[:, :, :, None]
    # The sum over the taps completes these products.
    with jax.named_scope(cost_marks.MULTIPLY_ADD):
      return v.reshape(shape) * weights

  bias = bias.astype(jnp.float32).reshape(taps, 1, 1, 1, planes)
  out = _window_sum(term, v, (kernel, bias), hidden)
  return out.reshape(v.shape).astype(v.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _window_sum(
  term: Callable[[jax.Array, Any, Any], jax.Array],
  x: jax.Array,
  taps: Any,
  shared: Any,
) -> jax.Array:
  """Sums term(x shifted to tap t, taps[t], shared) over the taps.

  Args:
    term: a differentiable function to a float32 array.
    x: map [b, h, w, c].
    taps: arrays with a leading axis of k*k taps.
    shared: arrays that all terms read.

  Returns:
    The sum, accumulated in float32.
  """
  return _window_sum_forward(term, x, taps, shared)[0]


def _window_sum_forward(term, x, taps, shared):
  padded = windows.reflect(x, windows.padding(_side(taps)))

  def add(total, step):
    start, tap = step
    shifted = lax.dynamic_slice(padded, start, x.shape)
    return total + term(shifted, tap, shared), None

  first = jax.tree.map(lambda a: a[0], taps)
  out = jax.eval_shape(term, x, first, shared)
  total = jnp.zeros(out.shape, jnp.float32)
  total, _ = lax.scan(add, total, (_starts(taps), taps))
  return total, (x, taps, shared)


def _window_sum_backward(term, residuals, cotangent):
  x, taps, shared = residuals
  pad = windows.padding(_side(taps))
  padded = windows.reflect(x, pad)

  def add(totals, step):
    start, tap = step
    shifted = lax.dynamic_slice(padded, start, x.shape)
    _, vjp = jax.vjp(term, shifted, tap, shared)
    to_shifted, to_tap, to_shared = vjp(cotangent)
    to_padded, to_all = totals
    # Adding in place is what makes this faster than the derivative of a slice,
    # which pads every shifted gradient to the whole map.
    here = lax.dynamic_slice(to_padded, start, x.shape)
    to_padded = lax.dynamic_update_slice(to_padded, here + to_shifted, start)
    return (to_padded, jax.tree.map(jnp.add, to_all, to_shared)), to_tap

  totals = jax.tree.map(
    lambda a: jnp.zeros(a.shape, jnp.float32), (padded, shared)
  )
  steps = (_starts(taps), taps)
  (to_padded, to_shared), to_taps = lax.scan(add, totals, steps)
  unpad = jax.linear_transpose(
    functools.partial(windows.reflect, pad=pad),
    jax.ShapeDtypeStruct(x.shape, jnp.float32),
  )
  to_x, to_shared = jax.tree.map(
    lambda a, like: a.astype(like.dtype),
    (unpad(to_padded)[0], to_shared),
    (x, shared),
  )
  return to_x, to_taps, to_shared


_window_sum.defvjp(_window_sum_forward, _window_sum_backward)


def _side(taps) -> int:
  return round(len(jax.tree.leaves(taps)[0]) ** 0.5)


def _starts(taps) -> tuple:
  """The corner of each tap's slice of the padded map [b, y, x, c]."""
  row, column = np.indices((_side(taps),) * 2, np.int32).reshape(2, -1)
  zero = np.zeros_like(row)
  return tuple(map(jnp.asarray, (zero, row, column, zero)))


def _multiplicity(size: int, kernel_size: int) -> np.ndarray:
  """How often a line shifted to a tap holds each of its pixels [k, size]."""
  source = windows.reflected(size, windows.padding(kernel_size))
  return np.stack(
    [
      np.bincount(source[tap : tap + size], minlength=size)
      for tap in range(kernel_size)
    ]
  ).astype(np.float32)
