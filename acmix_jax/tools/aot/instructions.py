"""Text of a compiled program as instructions, with the sizes of its arrays."""

import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r'^(?:(ENTRY) )?%?(\S+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][\w-]*)\((.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?')
_NAME = re.compile(r'%([\w.-]+)')


class Array(NamedTuple):
  """An array of a program.

  Attributes:
    shape: Length of each axis.
    bytes: Size in memory, with the padding of its layout.
    on_chip: Whether it lives in on-chip memory, not in the main memory.
  """

  shape: tuple[int, ...]
  bytes: int
  on_chip: bool


class Instruction(NamedTuple):
  """A line of a program.

  Attributes:
    opcode: Kind of instruction, e.g. 'fusion'.
    results: Arrays that it makes: one, or several as a tuple.
    operands: Names of the instructions that it reads.
    text: Rest of the line, from the operands on.
  """

  opcode: str
  results: list[Array]
  operands: list[str]
  text: str


Computation = dict[str, Instruction]


def read(text: str) -> tuple[dict[str, Computation], str]:
  """The instructions of each computation, and the name of the first to run.

  Args:
    text: What `jax.stages.Compiled.as_text` gives.
  """
  computations: dict[str, Computation] = {}
  computation, entry = {}, ''
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      computation = computations[match[2]] = {}
      if match[1]:
        entry = match[2]
    elif match := _INSTRUCTION.match(line):
      name, results, opcode, rest = match.groups()
      computation[name] = Instruction(
        opcode, _arrays(results), _NAME.findall(_operands(rest)), rest
      )
  return computations, entry


def _operands(rest: str) -> str:
  """What is before the parenthesis that closes the operands."""
  depth = 1
  for i, character in enumerate(rest):
    depth += (character == '(') - (character == ')')
    if not depth:
      return rest[:i]
  return rest


def _arrays(text: str) -> list[Array]:
  return [_array(*match) for match in _ARRAY.findall(text)]


def _array(dtype: str, shape: str, layout: str) -> Array:
  sides = [int(side) for side in shape.split(',') if side]
  width = re.search(r'\d+', dtype)
  bits = int(width[0]) if width else 8
  order = [int(axis) for axis in re.findall(r'\d+', layout.partition(':')[0])]
  tile = re.search(r'T\(([\d,]+)\)', layout)
  padded = list(sides)
  if tile:
    steps = reversed(tile[1].split(','))
    for axis, step in zip(order, map(int, steps), strict=False):
      padded[axis] = -(-padded[axis] // step) * step
  return Array(tuple(sides), math.prod(padded) * bits // 8, 'S(' in layout)
