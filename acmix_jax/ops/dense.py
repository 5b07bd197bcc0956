"""A linear map of the channels of each pixel, in the form of each platform.

CPU: x is a matrix. For the gradient of the kernel, a sum over several axes,
XLA would transpose x together with all that computes it, pixel by pixel. With
`xla_cpu.convolution` and `.max_pool` an update of resnet26 went from 1,150 to
700 ms, one of swin_tiny_acmix from 1,950 to 1,710 (4 images at 224 px).

TPU, in 16 bits: the bias is a row of the kernel, for a channel of ones, where
the matrix unit pads the channels anyway. Added by itself before a kernel of
Pallas, the compiler moves the map twice more, and once more to sum the gradient
of the bias. Of the bytes that an update moves (compiled for v5e, 128 images),
that saves 9 % with three blocks of resnet50_acmix and 4 % with two of
swin_tiny_acmix.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Channels that the matrix unit of a TPU multiplies at once.
_TPU_CHANNELS = 128


def dense(
  x: Float[Array, '*b c'],
  kernel: Float[Array, 'c f'],
  bias: Float[Array, ' f'] | None = None,
) -> Float[Array, '*b f']:
  """Linear map x @ kernel + bias of the last axis.

  Args:
    x: Map.
    kernel: Weights.
    bias: None: there is none.
  """
  forms = {'default': _plain}
  if x.ndim > 2:
    forms['cpu'] = _as_matrix
  if bias is not None and x.dtype.itemsize == 2 and x.shape[-1] % _TPU_CHANNELS:
    forms['tpu'] = _with_ones
  arrays = (x, kernel) if bias is None else (x, kernel, bias)
  return lax.platform_dependent(*arrays, **forms)


def _plain(x, kernel, bias=None):
  y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
  return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _as_matrix(x, *weights):
  y = _plain(x.reshape(-1, x.shape[-1]), *weights)
  return y.reshape(*x.shape[:-1], -1)


def _with_ones(x, kernel, bias):
  ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
  kernel = jnp.concatenate([kernel, bias[None]])
  return _plain(jnp.concatenate([x, ones], axis=-1), kernel)
