"""Local attention compiled for TPU, without one: bytes, memory, compile time.

python -m benchmarks.tpu [--topology=v5e:2x2] [--implementations=tiles,pallas]

Needs the compiler of `pip install 'jax[tpu]'`. The maps are those of the four
stages of a ResNet on 224 x 224 pixels. Moved is what the program reads from and
writes to the main memory, loops as often as they turn (`tools.aot.hlo`);
accessed is the compiler's own count, which takes each loop once and on-chip
memory like any other.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from acmix_jax.ops import local_attention
from acmix_jax.tools.aot import compilation, hlo
from benchmarks import harness

_HEADS = 4
_KERNEL_SIZE = 7
# Side and channels.
_MAPS = ('56x64', '28x128', '14x256', '7x512')
_HEADER = (
  'map',
  'implementation',
  'pass',
  'moved GB',
  'temporary MB',
  'accessed GB',
  'compile s',
)
# Implementations that run on TPU.
_IMPLEMENTATIONS = list(
  dict.fromkeys(
    row.name
    for row in local_attention.IMPLEMENTATIONS
    if 'tpu' in row.platforms
  )
)


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
  """The result and, for a gradient of it, those of q, k and v."""

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
  sharding = jax.sharding.SingleDeviceSharding(device)
  for name in args.maps:
    side, channels = map(int, name.split('x'))
    spec = jax.ShapeDtypeStruct(
      (args.batch, side, side, channels),
      jnp.dtype(args.dtype),
      sharding=sharding,
    )
    for implementation in args.implementations:
      attend = attention(implementation)
      programs = {
        'forward': (attend, [spec] * 3),
        'forward, backward': (with_gradients(attend), [spec] * 4),
      }
      for direction, (function, specs) in programs.items():
        harness.announce(f'{name} {implementation} {direction}')
        row = {
          'map': f'{side}x{side}x{channels}',
          'implementation': implementation,
          'pass': direction,
        }
        try:
          yield row | compile_for(function, specs)
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
    description='Compiles local attention for TPU on any machine.',
  )
  words = harness.list_of(str)
  parser.add_argument('--topology', default='v5e:2x2')
  parser.add_argument('--maps', type=words, default=_MAPS, metavar='SIDExC,..')
  parser.add_argument(
    '--implementations',
    type=words,
    default=_IMPLEMENTATIONS,
    metavar='NAME,..',
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
