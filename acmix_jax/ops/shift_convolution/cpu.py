"""Grouped convolution of maps as kernels for CPU with their own gradient."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from acmix_jax.cpu_kernels import library
from acmix_jax.ops import sharding, windows

# Tasks that the gradient of the weights is cut into at least, for threads to
# share, and maps of one of them.
_TASKS = 8
_MAPS = 4


def supports(
  maps: Sequence[jax.Array | jax.ShapeDtypeStruct],
  kernel: jax.Array | jax.ShapeDtypeStruct,
) -> bool:
  """Whether the kernels serve the maps: float32, whole vectors of channels."""
  whole = maps[0].shape[4] % library.LANES == 0
  return whole and all(x.dtype == jnp.float32 for x in (*maps, kernel))


def convolve(
  maps: Sequence[jax.Array], kernel: jax.Array, strides: int, dilation: int
) -> jax.Array:
  """Grouped convolution of several [b, h, w, m, d] by [k, k, sum of m, d * n].

  Has a reverse gradient of the first order only. Several devices share the
  images if `jax.set_mesh` names their mesh; a caller's own `jax.shard_map`
  needs check_vma=False.
  """
  d, channels = maps[0].shape[4], kernel.shape[3]
  weights = kernel.reshape(*kernel.shape[:3], d, -1).swapaxes(3, 4)
  y = _convolve(strides, dilation, list(maps), weights).swapaxes(3, 4)
  return y.reshape(*y.shape[:3], channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(strides, dilation, maps, weights):
  """Maps and weights [k, k, sum of m, n, d] to [b, h', w', n, d]."""

  def run(maps, weights):
    b, h, w, _, d = maps[0].shape
    size = windows.output_size(h, strides), windows.output_size(w, strides)
    y = jax.ShapeDtypeStruct((b, *size, weights.shape[3], d), weights.dtype)
    return library.call(
      *('ShiftConvolution', y, weights, *maps),
      strides=strides,
      dilation=dilation,
    )

  return sharding.split_images(run, maps, shared=[weights])


def _forward(strides, dilation, maps, weights):
  return _convolve(strides, dilation, maps, weights), (maps, weights)


def _backward(strides, dilation, saved, to_y):
  maps, weights = saved
  options = dict(strides=strides, dilation=dilation)

  def differentiate_maps(maps, to_y, weights):
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in maps]
    name = 'ShiftConvolutionMapGradient'
    return library.call(name, like, weights, to_y, **options)

  def differentiate_weights(maps, to_y):
    channels = weights.shape[4] // library.LANES
    tasks = channels * sum(-(-x.shape[3] // _MAPS) for x in maps)
    parts = min(-(-_TASKS // tasks), len(to_y))
    like = jax.ShapeDtypeStruct((parts, *weights.shape), weights.dtype)
    name = 'ShiftConvolutionKernelGradient'
    return library.call(name, like, to_y, *maps, **options)

  to_maps = sharding.split_images(
    differentiate_maps, maps, to_y, shared=[weights]
  )
  to_weights = sharding.split_images(differentiate_weights, maps, to_y)
  return list(to_maps), to_weights.sum(0)


_convolve.defvjp(_forward, _backward)
