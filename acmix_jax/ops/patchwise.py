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
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import cost_marks, derivatives, sharding, windows


def window_moments(
  x: Float[Array, 'b h w c'], kernel_size: int, num_groups: int = 1
) -> tuple[Float32[Array, 'g t c'], Float32[Array, 'g t c']]:
  """Batch statistics of the k*k shifted copies of a reflected map.

  A copy holds each row and each column of the map a known number of times, so
  the sums over it are products of the sum over images with these numbers.

  Args:
    x: Map.
    kernel_size: Odd side k of the window.
    num_groups: Groups of images with statistics of their own.

  Returns:
    The means of the copies and of their squares.
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
  x: Float[Array, 'b h w c'],
  factor: Float32[Array, 'g t c'],
  offset: Float32[Array, 'g t c'],
  kernel: Float[Array | np.ndarray, 't c f'],
  kernel_size: int,
) -> Float32[Array, 'b h w f']:
  """Scales and rectifies the window of each pixel, then a linear layer of it.

  out = sum over taps t of relu(x[t] * factor[t] + offset[t]) @ kernel[t].

  Args:
    x: Map.
    factor: Factor of each tap; a group is b / g images.
    offset: Summand of each tap.
    kernel: Weights of each tap.
    kernel_size: Odd side of the window.

  Returns:
    The sums over the taps.
  """
  groups, taps, c = factor.shape

  def term(x, tap, shared):
    del shared
    factor, offset, kernel = tap
    y = x.astype(factor.dtype).reshape(groups, -1, c) * factor + offset
    y = jax.nn.relu(y).astype(x.dtype).reshape(x.shape)
    return jnp.matmul(
      y, kernel.astype(x.dtype), preferred_element_type=jnp.float32
    )

  factor, offset = (
    jnp.swapaxes(a, 0, 1).reshape(taps, groups, 1, c) for a in (factor, offset)
  )
  x, taps = sharding.vary_alike(x, (factor, offset, kernel))
  return _window_sum(term, kernel_size, x, taps, ())


def patchwise_aggregation(
  v: Float[Array, 'b h w c'],
  hidden: Float[Array, 'b h w f'],
  kernel: Float[Array | np.ndarray, 't f planes'],
  bias: Float[Array | np.ndarray, 't planes'],
  kernel_size: int,
) -> Float[Array, 'b h w c']:
  """Sums the window of v with weights that are linear in hidden features.

  out[c] = sum over taps t of v[t, c] * weights[t, c % planes],
  weights[t] = hidden @ kernel[t] + bias[t].

  Source: hszhao/SAN lib/sa/functions/aggregation_refpad.py and the last layer
  of `conv_w`. The weights are not normalised; channel c has plane
  c % planes of the weights, so that planes are interleaved, not contiguous.

  Args:
    v: Values; c is a multiple of the planes.
    hidden: Hidden features.
    kernel: Weights of the linear layer.
    bias: Bias of the linear layer.
    kernel_size: Odd side of the window.

  Returns:
    The sums in the dtype of v.
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
      return v.reshape(shape).astype(weights.dtype) * weights

  bias = bias.astype(jnp.float32).reshape(taps, 1, 1, 1, planes)
  arrays = sharding.vary_alike(v, (kernel, bias), hidden)
  out = _window_sum(term, kernel_size, *arrays)
  return out.reshape(v.shape).astype(v.dtype)


def _window_sum(
  term: Callable[[jax.Array, Any, Any], jax.Array],
  kernel_size: int,
  x: jax.Array,
  taps: Any,
  shared: Any,
) -> jax.Array:
  """Sums term(x shifted to tap t, taps[t], shared) over the taps.

  Its first gradient is a loop like this one, other derivatives are jax's of the
  loop.

  Args:
    term: Differentiable function to a float32 array.
    kernel_size: Odd side k of the window.
    x: Map [b, h, w, c].
    taps: Arrays with a leading axis of k*k taps.
    shared: Arrays that all terms read.

  Returns:
    The sum, accumulated in float32.
  """
  return _differentiable_sum((term, kernel_size), x, taps, shared)


def _sum(static, x, taps, shared):
  term, kernel_size = static
  padded = windows.reflect(x, windows.reach(kernel_size))

  def add(total, step):
    start, tap = step
    shifted = lax.dynamic_slice(padded, start, x.shape)
    return total + term(shifted, tap, shared), None

  first = jax.tree.map(lambda a: a[0], taps)
  out = jax.eval_shape(term, x, first, shared)
  _, total = sharding.vary_alike(x, jnp.zeros(out.shape, jnp.float32))
  total, _ = lax.scan(add, total, (_starts(kernel_size), taps))
  return total


def _backward(static, inputs, _, dout):
  term, kernel_size = static
  x, taps, shared = inputs
  pad = windows.reach(kernel_size)
  padded = windows.reflect(x, pad)

  def add(totals, step):
    start, tap = step
    shifted = lax.dynamic_slice(padded, start, x.shape)
    _, vjp = jax.vjp(term, shifted, tap, shared)
    dshifted, dtap, dterm_shared = vjp(dout)
    dpadded, dshared = totals
    # Adding in place is what makes this faster than the derivative of a slice,
    # which pads every shifted gradient to the whole map.
    here = lax.dynamic_slice(dpadded, start, x.shape)
    dpadded = lax.dynamic_update_slice(
      dpadded, here + dshifted.astype(here.dtype), start
    )
    dshared = jax.tree.map(
      lambda total, x: total + x.astype(total.dtype), dshared, dterm_shared
    )
    return (dpadded, dshared), dtap

  totals = jax.tree.map(
    lambda a: jnp.zeros(a.shape, jnp.float32), (padded, shared)
  )
  _, totals = sharding.vary_alike(x, totals)
  steps = (_starts(kernel_size), taps)
  (dpadded, dshared), dtaps = lax.scan(add, totals, steps)
  unpad = jax.linear_transpose(
    functools.partial(windows.reflect, pad=pad),
    jax.ShapeDtypeStruct(x.shape, jnp.float32),
  )
  dx, dshared = jax.tree.map(
    lambda a, like: a.astype(like.dtype),
    (unpad(dpadded)[0], dshared),
    (x, shared),
  )
  return dx, dtaps, dshared


_differentiable_sum = derivatives.define(
  lambda static, *inputs: (_sum(static, *inputs), ()), _backward, _sum
)


def _starts(kernel_size: int) -> tuple:
  """The corner of each tap's slice of the padded map [b, y, x, c]."""
  row, column = np.indices((kernel_size,) * 2, np.int32).reshape(2, -1)
  zero = np.zeros_like(row)
  return tuple(map(jnp.asarray, (zero, row, column, zero)))


def _multiplicity(size: int, kernel_size: int) -> np.ndarray:
  """How often a line shifted to a tap holds each of its pixels [k, size]."""
  source = windows.reflected(size, windows.reach(kernel_size))
  return np.stack(
    [
      np.bincount(source[tap : tap + size], minlength=size)
      for tap in range(kernel_size)
    ]
  ).astype(np.float32)
