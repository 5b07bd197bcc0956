"""Layers compiled for TPU, without one: bytes, memory, compile time.

python -m benchmarks.tpu [--topology=v5e:2x2] [--maps=56x64,200x336x64] \
    [--layers=convolution,attention,acmix] [--implementations=tiles,pallas]

A layer has its projections and all gradients; of the attention alone there is a
row for each implementation that is asked for. The maps are those of the four
stages of a ResNet on 224 x 224 pixels.

Needs the compiler of `pip install 'jax[tpu]'`. Moved is what the program reads
from and writes to the main memory, loops as often as they turn
(`tools.aot.hlo`); accessed is the compiler's own count, which takes each loop
once and on-chip memory like any other.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from acmix_jax.nn import acmix, window_attention
from acmix_jax.nn import local_attention as nn_attention
from acmix_jax.ops import local_attention
from acmix_jax.tools.aot import compilation, hlo
from benchmarks import harness

_HEADS = 4
_KERNEL_SIZE = 7
# Channels of a head of Swin.
_WINDOW_HEAD = 32
# Side, or rows and columns, and channels.
_MAPS = ('56x64', '28x128', '14x256', '7x512')
_HEADER = (
  'map',
  'layer',
  'pass',
  'moved GB',
  'temporary MB',
  'accessed GB',
  'compile s',
)


def _convolution(channels, dtype):
  return nn.Conv(channels, (3, 3), dtype=dtype)


def _attention(channels, dtype):
  return nn_attention.LocalAttention(
    channels, _HEADS, _KERNEL_SIZE, dtype=dtype
  )


def _acmix(channels, dtype):
  return acmix.ACmix(channels, _HEADS, _KERNEL_SIZE, dtype=dtype)


def _window_layer(operator, channels, dtype):
  """A layer of Swin, with shifted windows."""
  attention = window_attention.WindowAttention(
    channels, channels // _WINDOW_HEAD, dtype=dtype, parent=None
  )
  layer = acmix.make_operator(
    operator, attention, use_fc_bias=True, dtype=dtype
  )
  return window_attention.ShiftedWindows(layer, shifted=True)


# (channels, dtype) -> module.
_LAYERS = {
  'convolution': _convolution,
  'attention': _attention,
  'acmix': _acmix,
  'window_attention': functools.partial(_window_layer, 'attention'),
  'window_acmix': functools.partial(_window_layer, 'acmix'),
}


def layer(
  name: str, spec: jax.ShapeDtypeStruct
) -> tuple[Callable, list[jax.ShapeDtypeStruct]]:
  """A layer with all gradients, and what it takes: of its outputs, and inputs.

  Args:
    name: Of `_LAYERS`.
    spec: Map [b, h, w, c].
  """
  module = _LAYERS[name](spec.shape[-1], spec.dtype)
  variables = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec.sharding),
    jax.eval_shape(module.init, jax.random.key(0), spec),
  )
  return with_gradients(module.apply), [spec, variables, spec]


def attention(implementation: str) -> Callable:
  """A function of q, k, v [b, h, w, c], as they leave the projections."""

  def attend(*maps):
    heads = (x.reshape(*x.shape[:3], _HEADS, -1) for x in maps)
    out = local_attention.local_attention(
      *heads, kernel_size=_KERNEL_SIZE, implementation=implementation
    )
    return out.reshape(maps[0].shape)

  return attend


def with_gradients(attend: Callable) -> Callable:
  """The result and, for a gradient of it, those of all inputs."""

  def run(dout, *maps):
    out, pullback = jax.vjp(attend, *maps)
    return out, pullback(dout)

  return run


def measure(
  args: argparse.Namespace, device: jax.Device, notes: list[str]
) -> Iterator[dict[str, Any]]:
  """Yields a row of the table for each program.

  Args:
    args: Parsed options.
    device: Device to compile for.
    notes: Gets what does not compile.
  """
  # The kernels read from the mesh which chip it is.
  mesh = jax.sharding.Mesh(
    np.array([device]), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  for name in args.maps:
    *sides, channels = map(int, name.split('x'))
    height, width = sides * 2 if len(sides) == 1 else sides
    spec = jax.ShapeDtypeStruct(
      (args.batch, height, width, channels),
      jnp.dtype(args.dtype),
      sharding=sharding,
    )
    programs = {
      (kind, 'forward, backward'): layer(kind, spec) for kind in args.layers
    }
    for implementation in args.implementations:
      attend, kind = attention(implementation), f'only {implementation!r}'
      programs[kind, 'forward'] = attend, [spec] * 3
      programs[kind, 'forward, backward'] = with_gradients(attend), [spec] * 4
    for (kind, direction), (function, specs) in programs.items():
      harness.announce(f'{name} {kind} {direction}')
      row = {
        'map': f'{height}x{width}x{channels}',
        'layer': kind,
        'pass': direction,
      }
      try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
          figures = compile_for(function, specs)
        yield row | figures
      except jax.errors.JaxRuntimeError as error:
        notes.append(f'{" ".join(row.values())}: {str(error)[:200]}')


def compile_for(
  function: Callable, specs: Sequence[jax.ShapeDtypeStruct]
) -> dict[str, float]:
  """Compiles a function and reads what its program needs."""
  start = time.perf_counter()
  compiled = jax.jit(function).lower(*specs).compile()
  seconds = time.perf_counter() - start
  return {
    'moved GB': hlo.Program(compiled.as_text()).moved_bytes() / 1e9,
    'temporary MB': compiled.memory_analysis().temp_size_in_bytes / 1e6,
    'accessed GB': compiled.cost_analysis()['bytes accessed'] / 1e9,
    'compile s': seconds,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table and writes the record."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.tpu',
    description='Compiles layers for TPU on any machine.',
  )
  words = harness.list_of(str)
  parser.add_argument('--topology', default='v5e:2x2')
  parser.add_argument('--maps', type=words, default=_MAPS, metavar='SIDExC,..')
  parser.add_argument(
    '--layers', type=words, default=list(_LAYERS), metavar='NAME,..'
  )
  parser.add_argument(
    '--implementations', type=words, default=[], metavar='NAME,..'
  )
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--dtype', default='bfloat16')
  harness.add_arguments(parser)
  args = parser.parse_args(argv)
  try:
    device = compilation.topology_devices(args.topology)[0]
  except (ImportError, ValueError) as error:
    print(f'tpu: {error}', file=sys.stderr)
    return 2
  notes = [
    f'{args.batch} images, {args.dtype}, {_HEADS} heads, windows of '
    f'{_KERNEL_SIZE}x{_KERNEL_SIZE}, for one {device.device_kind}.'
  ]
  harness.report(args, _HEADER, list(measure(args, device, notes)), notes)
  return 0


if __name__ == '__main__':
  sys.exit(main())
