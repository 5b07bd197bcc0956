"""Grouped convolution of maps as kernels for CPU with their own gradient."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax import cpu_kernels
from acmix_jax.ops import derivatives, sharding, windows
from acmix_jax.ops.shift_convolution import geometry, shifts

# Tasks that the gradient of the kernel is cut into at least, for threads to
# share, and maps of one of them.
_TASKS = 8
_MAPS = 4


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernels cannot serve, or None."""
  if problem.dtype != jnp.float32:
    return f'the kernels for CPU take float32, not {problem.dtype}.'
  if problem.depth % cpu_kernels.LANES:
    return (
      f'the kernels for CPU take a multiple of {cpu_kernels.LANES} channels a '
      f'map, not {problem.depth}.'
    )
  if problem.varying:
    return f'of the kernels for CPU, {sharding.WHY_NOT_VARYING}'
  return cpu_kernels.why_not()


def convolve(
  problem: geometry.Problem,
  maps: Sequence[Float[Array, 'b h w _m d']],
  kernel: Float[Array, 'kh kw m f'],
) -> Float[Array, 'b ho wo f']:
  """Grouped convolution of the concatenated maps, a group for each channel.

  Its first gradient is by kernels, other derivatives are those of the shifted
  maps. Several devices share the images if `jax.set_mesh` names their mesh.
  """
  return _convolve(problem, maps, kernel)


def _forward(problem, maps, kernel):
  def call(maps, kernel):
    b, h, w, _, d = maps[0].shape
    size = [windows.output_size(x, problem.strides) for x in (h, w)]
    n = kernel.shape[3] // d
    out = jax.ShapeDtypeStruct((b, *size, n, d), kernel.dtype)
    kernel = _split_channels(kernel, d)
    return _call('ShiftConvolution', problem, out, kernel, *maps)

  out = sharding.split_images(call, maps, shared=[kernel])
  return _join_channels(out), ()


def _backward(problem, inputs, _, dout):
  maps, kernel = inputs
  d = maps[0].shape[4]

  def differentiate_maps(maps, dout, kernel):
    dout, kernel = _split_channels(dout, d), _split_channels(kernel, d)
    name = 'ShiftConvolutionMapGradient'
    return _call(name, problem, list(maps), kernel, dout)

  def differentiate_kernel(maps, dout):
    dout = _split_channels(dout, d)
    blocks = d // cpu_kernels.LANES * sum(-(-x.shape[3] // _MAPS) for x in maps)
    parts = min(-(-_TASKS // blocks), len(dout))
    shape = (parts, *kernel.shape[:3], dout.shape[3], d)
    parts = jax.ShapeDtypeStruct(shape, kernel.dtype)
    name = 'ShiftConvolutionKernelGradient'
    return _call(name, problem, parts, dout, *maps)

  dmaps = sharding.split_images(differentiate_maps, maps, dout, shared=[kernel])
  dkernel = sharding.split_images(differentiate_kernel, maps, dout).sum(0)
  return dmaps, _join_channels(dkernel)


_convolve = derivatives.define(_forward, _backward, shifts.convolve)


def _split_channels(x, d):
  """[..., d * n] to [..., n, d]."""
  return x.reshape(*x.shape[:-1], d, -1).swapaxes(-1, -2)


def _join_channels(x):
  """[..., n, d] to [..., d * n]."""
  return x.swapaxes(-1, -2).reshape(*x.shape[:-2], -1)


def _call(name, problem, like, *arrays):
  """Calls a kernel for results like these arrays."""
  return cpu_kernels.call(
    name,
    like,
    *arrays,
    strides=problem.strides,
    dilation=problem.dilation,
  )
