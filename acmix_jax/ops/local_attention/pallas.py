"""Local attention as fused kernels with their own gradient, for TPU and GPU.

The logits stay on the chip and are computed again for the gradient; q, k and v
alone are kept for it.
"""

import functools
from collections.abc import Callable

import jax
from jax import lax

from acmix_jax.ops import sharding
from acmix_jax.ops.local_attention import pallas_gpu, pallas_tpu

_KERNELS = {'tpu': pallas_tpu, 'cuda': pallas_gpu}


def supports(
  q: jax.Array | jax.ShapeDtypeStruct,
  k: jax.Array | jax.ShapeDtypeStruct,
  kernel_size: int,
  strides: int,
  dilation: int,
  platform: str,
) -> bool:
  """Whether a kernel of `platform` serves these shapes and dtypes.

  Args:
    q: queries [b, ceil(h / strides), ceil(w / strides), n, d].
    k: keys [b, h, w, n, d].
    kernel_size: odd side of the window.
    strides: pixels between queries.
    dilation: pixels between neighbouring keys of a window.
    platform: 'tpu' or 'cuda'; no other has a kernel.
  """
  if platform not in _KERNELS:
    return False
  return _KERNELS[platform].supports(q, k, kernel_size, strides, dilation)


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

  A platform without a kernel interprets that of TPU: slow, for tests. Has one
  reverse gradient and no forward one. Products of float32 are as precise as
  jax_default_matmul_precision says.

  Several devices share the images if `jax.set_mesh` names their mesh; jax
  refuses to lower the kernels for them otherwise. A caller's own
  `jax.shard_map` needs check_vma=False.

  Args:
    q: queries [b, ceil(h / strides), ceil(w / strides), n, d].
    k: keys [b, h, w, n, d], scaled.
    v: values [b, h, w, n, d].
    kernel_size: odd side of the window.
    strides: pixels between queries.
    dilation: pixels between neighbouring keys of a window.

  Returns:
    [b, ceil(h / strides), ceil(w / strides), n, d] in the dtype of v.
  """
  return _forward((kernel_size, strides, dilation), q, k, v)


def _attend_forward(q, k, v, *window):
  return attend(q, k, v, *window), (q, k, v)


def _attend_backward(kernel_size, strides, dilation, saved, dout):
  return _backward((kernel_size, strides, dilation), *saved, dout)


attend.defvjp(_attend_forward, _attend_backward)


def _kernel(name: str) -> Callable:
  """The function of that name of the platform's kernels, split by images.

  No compiler can split a kernel, and `custom_partitioning`, which would tell it
  how to, is unknown to that of TPU (jax issue 38196).

  Args:
    name: of a function (*arrays, *window, interpret).

  Returns:
    function (window, *arrays).
  """

  def branch(kernels, window, interpret):
    run = getattr(kernels, name)
    return lambda *arrays: run(*arrays, *window, interpret=interpret)

  def run(window, *arrays):
    branches = {
      platform: branch(kernels, window, False)
      for platform, kernels in _KERNELS.items()
    }
    interpreted = branch(pallas_tpu, window, True)
    return lax.platform_dependent(*arrays, default=interpreted, **branches)

  def split(window, *arrays):
    run_split = functools.partial(run, window)
    return sharding.split_images(run_split, *arrays)

  return split


_forward = _kernel('forward')
_backward = _kernel('backward')
