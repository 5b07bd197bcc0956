r"""The ACmix layer forward and backward, against the official PyTorch layer.

python -m benchmarks.operator --acmix=DIR_OF_LEAPLABTHU_ACMIX \
  [--torch_python=FILE] [--dtype=bfloat16 --batch=64 --peers=eager,compile,flex]

By default 8 images in float32 on CPU, and 64 in bfloat16 with all peers on a
GPU; there the official layer runs under autocast, as it fails in half
precision. The peer 'flex' adds a table of the attention alone, against
PyTorch's flex_attention over the same reflected windows. On CPU 'auto' takes
the kernels of acmix_jax.cpu_kernels, and 'XLA alone' is 'auto' without them.
Temporary memory is what a compiled program needs beside its arguments and
results.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import acmix_jax
from acmix_jax import cpu_kernels
from acmix_jax.ops import implementations, local_attention
from acmix_jax.ops.local_attention import geometry, pallas_tpu
from benchmarks import harness

_HEADS = 4
_KERNEL_SIZE = 7
# What is asked of `torch_peers`, by the name of the peer.
_PEERS = {
  'eager': {'work': 'layer', 'compile': False},
  'compile': {'work': 'layer', 'compile': True},
  'flex': {'work': 'flex_attention', 'kernel_size': _KERNEL_SIZE},
}
_HEADER = (
  'work',
  'map',
  'contestant',
  'ms',
  'PyTorch / this',
  'temporary MiB',
  'patches / this',
)

Work = tuple[Callable, list[jax.Array]]


def make_layer(
  implementation: str, shape: tuple[int, ...], dtype: jnp.dtype
) -> Work:
  """An ACmix layer with its variables, input and gradient [b, h, w, c]."""
  layer = acmix_jax.ACmix(
    shape[-1],
    _HEADS,
    _KERNEL_SIZE,
    dtype=dtype,
    attention_implementation=implementation,
  )
  x, dout = _random(2, shape, dtype)
  variables = jax.jit(layer.init)(jax.random.key(0), x)
  return layer.apply, [variables, x, dout]


def make_attention(
  implementation: str, shape: tuple[int, ...], dtype: jnp.dtype
) -> Work:
  """The attention alone, without its position term."""
  heads = (*shape[:-1], _HEADS, shape[-1] // _HEADS)

  def attend(q, k, v):
    return local_attention.local_attention(
      q, k, v, kernel_size=_KERNEL_SIZE, implementation=implementation
    )

  return attend, _random(4, heads, dtype)


# How ours is made and which peers do the same; the first of them that runs
# gives the ratios.
_WORKS = {
  'layer': (make_layer, ('eager', 'compile')),
  'attention': (make_attention, ('flex',)),
}


class Program(NamedTuple):
  """One of ours, compiled forward and backward, with its arguments."""

  compiled: Callable
  arrays: list[jax.Array]


def compile_ours(
  work: str, implementation: str, shape: tuple[int, ...], dtype: str
) -> Program:
  """Compiles a work forward and backward.

  Args:
    work: Name of `_WORKS`.
    implementation: Implementation of the attention.
    shape: Shape of the map [b, h, w, c].
    dtype: Dtype of input and computation.
  """
  make, _ = _WORKS[work]
  function, arrays = make(implementation, shape, jnp.dtype(dtype))
  compiled = _forward_backward(function).lower(*arrays).compile()
  return Program(compiled, arrays)


def measure(
  work: str,
  shape: tuple[int, ...],
  args: argparse.Namespace,
  ours: dict[str, Program],
  notes: list[str],
) -> Iterator[dict[str, Any]]:
  """Yields a row of the table for each contestant.

  Args:
    work: Name of `_WORKS`.
    shape: Shape of the map [b, h, w, c].
    args: Parsed options.
    ours: Programs to measure beside those of `args.implementations`.
    notes: Gets those that do not run.
  """
  harness.announce(f'{work} {shape}')
  _, peers = _WORKS[work]
  ours = ours | {
    f'ours, {name}': compile_ours(work, name, shape, args.dtype)
    for name in _runnable(args.implementations, shape, args.dtype, notes)
  }
  contestants = {
    name: harness.compiled_contestant(program.compiled, *program.arrays)
    for name, program in ours.items()
  }
  temporary = {
    name: program.compiled.memory_analysis().temp_size_in_bytes
    for name, program in ours.items()
  }
  requests = _requests([x for x in peers if x in args.peers], shape, args)
  with contextlib.ExitStack() as stack:
    peers = harness.start_peers(stack, requests, args.torch_python, notes)
    seconds = harness.take_turns(
      contestants | peers, args.rounds, args.turn_seconds
    )
  reference = seconds.get(next(iter(peers), None))
  patches = temporary.get('ours, patches')
  for name, samples in seconds.items():
    memory = temporary.get(name)
    yield {
      'work': work,
      'map': 'x'.join(map(str, shape[1:])),
      'contestant': name,
      'ms': harness.median_ms(samples),
      'PyTorch / this': harness.ratio(reference, samples),
      'temporary MiB': memory and memory / harness.MIB,
      'patches / this': memory and patches and patches / memory,
      'seconds': samples,
    }


def _requests(peers, shape, args) -> dict[str, dict[str, Any]]:
  """What the process of each peer is asked to measure."""
  request = {
    'acmix': args.acmix,
    'batch': shape[0],
    'dtype': args.dtype,
    'features': shape[3],
    'num_heads': _HEADS,
    'size': shape[1],
  }
  return {f'PyTorch, {name}': request | _PEERS[name] for name in peers}


def _forward_backward(function):
  """Jits (*args, gradient of the result) -> result, gradients of args."""

  def run(*args):
    *args, dout = args
    out, pullback = jax.vjp(function, *args)
    return out, pullback(dout)

  return jax.jit(run)


def _random(count, shape, dtype):
  keys = jax.random.split(jax.random.key(0), count)
  return [jax.random.normal(key, shape, dtype) for key in keys]


def _runnable(names, shape, dtype, notes):
  """Those of the names that this device runs without interpreting them."""
  b, h, w, c = shape
  maps = jax.ShapeDtypeStruct((b, h, w, _HEADS, c // _HEADS), dtype)
  problem = geometry.describe(maps, maps, maps, _KERNEL_SIZE, 1, 1)
  platform = {'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend())
  runnable = []
  for name in names:
    row = implementations.choose(
      local_attention.IMPLEMENTATIONS, name, problem, platform
    )
    if row and row.run is not pallas_tpu.interpret:
      runnable.append(name)
    else:
      notes.append(f'ours, {name}: not on {platform} for some of the maps.')
  return runnable


def _map(text: str) -> tuple[int, int, int]:
  size, channels = map(int, text.split('x'))
  return size, size, channels


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table and writes the record."""
  gpu = jax.default_backend() == 'gpu'
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.operator', description=__doc__.splitlines()[0]
  )
  harness.add_arguments(parser)
  harness.add_peer_arguments(parser, acmix='LeapLabTHU/ACmix')
  parser.add_argument(
    '--maps',
    type=harness.list_of(_map),
    default='56x64,28x128,14x256,7x512',
    help='side x channels of each (default: %(default)s)',
  )
  parser.add_argument(
    '--implementations',
    type=harness.list_of(str),
    default=implementations.names(local_attention.IMPLEMENTATIONS),
    help="of ours; 'patches' is slow on CPU (default: all)",
  )
  parser.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='bfloat16' if gpu else 'float32',
    help='of input and computation (default here: %(default)s)',
  )
  parser.add_argument(
    '--batch',
    type=int,
    default=64 if gpu else 8,
    help='images (default here: %(default)s)',
  )
  parser.add_argument(
    '--peers',
    type=harness.list_of(str),
    default='eager,compile,flex' if gpu else 'eager',
    help=f'some of {",".join(_PEERS)} (default here: %(default)s)',
  )
  args = parser.parse_args(argv)
  unknown = set(args.peers) - set(_PEERS)
  if unknown:
    parser.error(f'--peers: {", ".join(unknown)}; known: {", ".join(_PEERS)}')
  works = ['layer'] + ['attention'] * ('flex' in args.peers)
  runs = [(work, (args.batch, *x)) for work in works for x in args.maps]
  ours, rows, notes = {}, [], []
  if jax.default_backend() == 'cpu':
    # What is traced before the kernels are enabled stays without them.
    ours = {
      run: {'ours, XLA alone': compile_ours(run[0], 'auto', run[1], args.dtype)}
      for run in runs
    }
    if not cpu_kernels.enable():
      notes.append(f'No kernels for CPU: {cpu_kernels.why_not()}')
  for work, shape in runs:
    rows += measure(work, shape, args, ours.get((work, shape), {}), notes)
  harness.report(args, _HEADER, rows, notes)
  return 0


if __name__ == '__main__':
  sys.exit(main())
