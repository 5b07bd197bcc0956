"""Counts in the text of a compiled program: flops, bytes moved, exchanges.

The compiler's own `cost_analysis` counts a loop once, whatever its length, and
on-chip memory like any other.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from acmix_jax.tools.aot import instructions
from acmix_jax.tools.aot.instructions import Array, Computation, Instruction

_CALLED = re.compile(
  r'(?:calls|to_apply|branch_computations|called_computations)='
  r'(\{[^}]*\}|%?[\w.-]+)'
)
_COST = re.compile(
  r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"'
)

_SOURCE = re.compile(r'op_name="([^"]*)"')
# Parts of a name that are no place of the source.
_TRANSFORM = re.compile(r'.*\(.*|cond|while|body|closed_call|branch_\d+_fun')

_COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# They move nothing: they name or await the results of other instructions.
_FREE = (
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'partition-id',
  'replica-id',
  'optimization-barrier',
)
_SLICES = ('dynamic-slice', 'slice', 'gather')


class Collective(NamedTuple):
  """Exchanges of one kind: how many, and the bytes of their results."""

  count: int
  bytes: int


class Operation(NamedTuple):
  """Instructions of one kind that come from the same place of the source.

  Attributes:
    module: Module and operation, e.g. 'stage1_0/operator/query/dot_general';
      '' where the compiler says none, as of copies that it adds itself.
    kind: Kind of instruction, and 'backward' for a gradient.
    count: How often they run.
    bytes: What they read from and write to the main memory.
    flops: Flops of products and kernels.
  """

  module: str
  kind: str
  count: int
  bytes: int
  flops: int


class Program:
  """A compiled program for one device.

  A loop whose length the data decide counts as one turn.
  """

  def __init__(self, text: str):
    """Reads what `jax.stages.Compiled.as_text` gives."""
    self._computations, entry = instructions.read(text)
    # The parts of a fusion run without main memory.
    self._run = list(self._walk(entry, 1, fused=False))

  @property
  def loops(self) -> list[int | None]:
    """Turns of each loop, inner ones behind theirs; None where data decide."""
    return [self._turns(loop) for loop in self._while()]

  def open_loops(self) -> list[Operation]:
    """One turn of each loop whose length the data decide.

    Such a loop within another is in a turn of that one, with one turn.
    """
    found = []
    for loop in self._while():
      if self._turns(loop) is None:
        turn = list(self._walk(self._body(loop), 1, fused=False))
        flops = sum(times * _flops(where, x) for where, x, times, _ in turn)
        found.append(Operation(*_source(loop), 1, self._moved(turn), flops))
    return found

  def _while(self):
    return [x for _, x, _, _ in self._run if x.opcode == 'while']

  def moved_bytes(self) -> int:
    """Bytes read from and written to the main memory.

    Kernels count as they estimate themselves.
    """
    return self._moved(self._run)

  def _moved(self, run):
    return sum(
      times * self._bytes(computation, instruction)
      for computation, instruction, times, fused in run
      if not fused
    )

  def operations(self) -> list[Operation]:
    """All that moves bytes or multiplies, by module and kind."""
    found = {}
    for computation, instruction, times, fused in self._run:
      if fused:
        continue
      size = times * self._bytes(computation, instruction)
      flops = times * self._flops_within(computation, instruction)
      if not (size or flops):
        continue
      key = _source(instruction)
      previous = found.get(key, Operation(*key, 0, 0, 0))
      found[key] = Operation(
        *key,
        previous.count + times,
        previous.bytes + size,
        previous.flops + flops,
      )
    return list(found.values())

  def _flops_within(self, computation, instruction) -> int:
    """Flops of an instruction with those that are fused into it."""
    flops = _flops(computation, instruction)
    if instruction.opcode == 'fusion':
      inner = self._computations[
        _CALLED.search(instruction.text)[1].lstrip('%')
      ]
      flops += sum(self._flops_within(inner, x) for x in inner.values())
    return flops

  def flops_of_repetition(self) -> int:
    """Flops of products and kernels in all turns of loops but the first."""
    return sum(
      (times - 1) * _flops(computation, instruction)
      for computation, instruction, times, _ in self._run
      if times > 1
    )

  def recomputed(self) -> int:
    """Results that the compiler makes twice, or packs, for lack of memory."""
    return sum(
      '.remat' in name
      for computation in self._computations.values()
      for name in computation
    )

  def collectives(self) -> dict[str, Collective]:
    """Exchanges between devices, by kind."""
    found = collections.defaultdict(lambda: Collective(0, 0))
    for _, instruction, times, _ in self._run:
      kind = instruction.opcode.removesuffix('-done')
      if kind in _COLLECTIVES:
        count, size = found[kind]
        bytes_each = sum(array.bytes for array in instruction.results)
        found[kind] = Collective(count + times, size + times * bytes_each)
    return dict(found)

  def _walk(
    self, name: str, times: int, fused: bool
  ) -> Iterator[tuple[Computation, Instruction, int, bool]]:
    computation = self._computations[name]
    for instruction in computation.values():
      yield computation, instruction, times, fused
      if instruction.opcode == 'while':
        turns = self._turns(instruction) or 1
        yield from self._walk(self._body(instruction), times * turns, fused)
        continue
      inside = fused or instruction.opcode not in ('call', 'conditional')
      for called in _CALLED.findall(instruction.text):
        for inner in re.findall(r'[\w.-]+', called):
          yield from self._walk(inner, times, inside)

  def _body(self, loop: Instruction) -> str:
    return re.search(r'body=%?([\w.-]+)', loop.text)[1]

  def _turns(self, loop: Instruction) -> int | None:
    """Turns of a loop that counts from 0 to a constant, else None."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
    if known:
      return int(known[1])
    condition = re.search(r'condition=%?([\w.-]+)', loop.text)[1]
    limits = [
      int(match[1])
      for instruction in self._computations[condition].values()
      if instruction.opcode == 'constant'
      and (match := re.match(r'(\d+)\)', instruction.text))
    ]
    return limits[0] if len(limits) == 1 else None

  def _bytes(self, computation: Computation, instruction: Instruction) -> int:
    opcode, results, operands, text = instruction
    if opcode in _FREE or opcode.endswith(('-done', '-update')):
      return 0
    if opcode in ('while', 'call', 'conditional'):
      return 0
    if opcode == 'custom-call':
      if match := _COST.search(text):
        return int(match[2])
      if 'tpu_custom_call' not in text:  # It allocates or renames.
        return 0
    read = [_in_main_memory(computation[name].results) for name in operands]
    if opcode.endswith('-start'):
      # Of a copy: (result, operand, flag); of others: (operand, result, flag).
      first = 0 if opcode == 'copy-start' else len(operands)
      written = results[first : first + 1] or results
      part = sum(array.bytes for array in written)
      return min(sum(read), part) + _in_main_memory(written)
    if opcode in _SLICES:
      return min(read[0], results[0].bytes) + _in_main_memory(results)
    if opcode == 'dynamic-update-slice':
      update = computation[operands[1]].results[0].bytes
      return read[1] + min(_in_main_memory(results), update)
    written = _in_main_memory(results)
    if opcode == 'fusion':
      read, written = self._fusion(instruction, read, written)
    return sum(read) + written

  def _fusion(self, fusion, read, written):
    """Corrects what a fusion reads and writes where it does so in part."""
    called = _CALLED.search(fusion.text)[1].lstrip('%')
    inner = self._computations[called]
    users = collections.defaultdict(list)
    for instruction in inner.values():
      for place, name in enumerate(instruction.operands):
        users[name].append((place, instruction))
    parameters = [
      (int(re.match(r'\d+', instruction.text)[0]), name)
      for name, instruction in inner.items()
      if instruction.opcode == 'parameter'
    ]
    for number, name in parameters:
      parts = 0
      for place, user in users[name]:
        if user.opcode in _SLICES and place == 0:
          parts += user.results[0].bytes
        elif user.opcode == 'dynamic-update-slice' and place == 0:
          # In place: what is not updated is not touched.
          whole = min(read[number], user.results[0].bytes)
          update = inner[user.operands[1]].results[0].bytes
          written -= max(0, whole - update) if written else 0
        else:
          parts += read[number]
      read[number] = min(read[number], parts)
    return read, written


def _source(instruction: Instruction) -> tuple[str, str]:
  """Module and kind of an `Operation`."""
  match = _SOURCE.search(instruction.text)
  path = match[1] if match else ''
  names = [x for x in path.split('/') if not _TRANSFORM.fullmatch(x)]
  kind = instruction.opcode.removesuffix('-start')
  if 'transpose(' in path:
    kind += ', backward'
  return '/'.join(names), kind


def _in_main_memory(arrays: list[Array]) -> int:
  return sum(array.bytes for array in arrays if not array.on_chip)


def _flops(computation: Computation, instruction: Instruction) -> int:
  """Of a product or a kernel; a multiply-add is two."""
  text = instruction.text
  if instruction.opcode == 'custom-call':
    return int(match[1]) if (match := _COST.search(text)) else 0
  if instruction.opcode == 'dot':
    left = computation[instruction.operands[0]].results[0].shape
    axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', text)[1]
    terms = math.prod(left[int(axis)] for axis in axes.split(',') if axis)
  elif instruction.opcode == 'convolution':
    return 2 * _convolution_terms(computation, instruction)
  else:
    return 0
  return 2 * terms * math.prod(instruction.results[0].shape)


def _convolution_terms(computation: Computation, instruction: Instruction):
  """Multiply-adds, but for those with padding or gaps between pixels.

  The compiler writes a 1x1 convolution as one of 56x56 on padding, if it likes.
  """
  text = instruction.text
  arrays = [computation[name].results[0] for name in instruction.operands]
  arrays.append(instruction.results[0])
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', text).groups()
  x, kernel, out = (
    dict(zip(axes, array.shape, strict=True))
    for axes, array in zip(labels, arrays, strict=True)
  )
  terms = out['b'] * out['f'] * kernel['i']
  match = re.search(r'window=\{([^}]*)\}', text)
  window = {
    name: value.split('x')
    for name, value in re.findall(r'(\w+)=(\S+)', match[1] if match else '')
  }
  for number in range(len(x) - 2):
    axis = str(number)
    stride, gap, spacing = (
      int(window[name][number]) if name in window else 1
      for name in ('stride', 'lhs_dilate', 'rhs_dilate')
    )
    before = window['pad'][number].split('_')[0] if 'pad' in window else 0
    place = stride * np.arange(out[axis])[:, None] - int(before)
    place = place + spacing * np.arange(kernel[axis])
    inside = (place >= 0) & (place <= gap * (x[axis] - 1))
    terms *= int((inside & (place % gap == 0)).sum())
  return terms
