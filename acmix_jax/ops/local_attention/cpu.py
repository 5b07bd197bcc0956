"""Local attention as a fused kernel for CPU with its own gradient.

q, k and v alone are kept for the gradient. Each thread holds the logits of one
row of queries, and the keys and values of an image for a few heads.
"""

import functools

import jax
import jax.numpy as jnp

from acmix_jax.cpu_kernels import library
from acmix_jax.ops import sharding


def supports(
  q: jax.Array | jax.ShapeDtypeStruct,
  k: jax.Array | jax.ShapeDtypeStruct,
  v: jax.Array | jax.ShapeDtypeStruct,
) -> bool:
  """Whether the kernel serves these dtypes: float32 alone."""
  return all(x.dtype == jnp.float32 for x in (q, k, v))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  kernel_size: int,
  strides: int,
  dilation: int,
) -> jax.Array:
  """Attention of each query over the window around it, reflected at borders.

  Has one reverse gradient and no forward one. Several devices share the images
  if `jax.set_mesh` names their mesh; each computes all of them otherwise. A
  caller's own `jax.shard_map` needs check_vma=False.

  Args:
    q: queries [b, ceil(h / strides), ceil(w / strides), n, d].
    k: keys [b, h, w, n, d], scaled.
    v: values [b, h, w, n, d].
    kernel_size: odd side of the window.
    strides: pixels between queries.
    dilation: pixels between neighbouring keys of a window.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), n, d].
  """
  window = kernel_size, strides, dilation
  return _split('LocalAttention', window, q, k, v, like=1)[0]


def _forward(q, k, v, *window):
  return attend(q, k, v, *window), (q, k, v)


def _backward(kernel_size, strides, dilation, saved, to_out):
  window = kernel_size, strides, dilation
  return _split('LocalAttentionGradient', window, *saved, to_out, like=3)


attend.defvjp(_forward, _backward)


def _split(name, window, *arrays, like):
  """Calls a kernel whose results are like the first arrays."""
  names = 'kernel_size', 'strides', 'dilation'

  def run(*arrays):
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[:like]]
    attributes = dict(zip(names, window, strict=True))
    return library.call(name, results, *arrays, **attributes)

  return sharding.split_images(run, *arrays)
