"""Local attention as fused kernels with their own gradient, for TPU and GPU.

The logits stay on the chip and are computed again for the gradient; q, k and v
alone are kept for it.
"""

import functools
from collections.abc import Callable

import jax
from jax import lax, sharding
from jax.experimental import custom_partitioning

from acmix_jax.ops import local_attention_gpu, local_attention_tpu

_KERNELS = {'tpu': local_attention_tpu, 'cuda': local_attention_gpu}


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
  reverse gradient, no forward one, and no rule for `jax.vmap`. Products of
  float32 are as precise as jax_default_matmul_precision says.

  Args:
    q: queries [b, ceil(h / strides), ceil(w / strides), n, d], scaled.
    k: keys [b, h, w, n, d].
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


def _kernel(name: str, rule: str) -> Callable:
  """The function of that name of the platform's kernels, split by images.

  The compiler cannot see into a kernel: by itself it would gather the images
  of all devices on each of them.

  Args:
    name: of a function (*arrays, *window, interpret).
    rule: names of the axes of its arrays; they share b, the images.

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
    interpreted = branch(local_attention_tpu, window, True)
    return lax.platform_dependent(*arrays, default=interpreted, **branches)

  def partition(window, mesh, arguments, results):
    images = jax.tree.leaves(results)[0].sharding.spec[:1]
    split = sharding.NamedSharding(mesh, sharding.PartitionSpec(*images))
    arguments, results = (
      jax.tree.map(lambda _: split, shapes) for shapes in (arguments, results)
    )
    return mesh, functools.partial(run, window), results, arguments

  split = custom_partitioning.custom_partitioning(run, static_argnums=(0,))
  split.def_partition(
    partition, sharding_rule=rule, need_replication_factors=tuple('yxndhw')
  )
  return split


_forward = _kernel('forward', 'b y x n d, b h w n d, b h w n d -> b y x n d')
_backward = _kernel(
  'backward',
  'b y x n d, b h w n d, b h w n d, b y x n d'
  ' -> b y x n d, b h w n d, b h w n d',
)
