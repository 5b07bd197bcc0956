"""One operator, several implementations: which of them serves a problem.

A table lists the implementations of an operator in order of preference.
'auto', the error of an implementation that cannot serve, the tests and the
benchmarks all read it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import lax

from acmix_jax import lookup
from acmix_jax.ops import sharding

# Names of `lax.platform_dependent`.
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


class Implementation(NamedTuple):
  """One way to compute an operator on some platforms.

  Attributes:
    name: Name by which a caller asks for it.
    platforms: Platforms it runs on, of `PLATFORMS`.
    why_not: Reason why it cannot serve a problem, or None.
    run: (problem, *arrays) -> result.
  """

  name: str
  platforms: tuple[str, ...]
  why_not: Callable[[Any], str | None]
  run: Callable[..., Any]


def always(problem: Any) -> None:
  """The `why_not` of an implementation that serves every problem."""
  del problem


def whole_layer(kernel: Any, separate: Callable[..., Any]) -> tuple:
  """The table of an operator that is all of a layer, in order of preference.

  Args:
    kernel: Module with a fused kernel for TPU, which reads the input and writes
      the output: `why_not`, `combine` and `interpret`.
    separate: One operator after the other: (problem, *arrays) -> result.
  """
  return (
    Implementation('pallas', ('tpu',), kernel.why_not, kernel.combine),
    Implementation('separate', PLATFORMS, always, separate),
    # Slow, for tests.
    Implementation('pallas', ('cpu', 'rocm'), kernel.why_not, kernel.interpret),
  )


def names(table: Sequence[Implementation]) -> list[str]:
  """What a caller may ask for: 'auto', then every name once."""
  return ['auto', *dict.fromkeys(row.name for row in table)]


def choose(
  table: Sequence[Implementation], name: str, problem: Any, platform: str
) -> Implementation | None:
  """The first implementation that serves a problem on a platform.

  Args:
    table: Implementations in order of preference.
    name: Name of an implementation, or 'auto' for any.
    problem: Static sizes, whatever the table's rows take.
    platform: Platform, of `PLATFORMS`.
  """
  for row in table:
    named = name in ('auto', row.name) and platform in row.platforms
    if named and row.why_not(problem) is None:
      return row
  return None


def run(
  table: Sequence[Implementation],
  operation: str,
  name: str,
  problem: Any,
  *arrays: Any,
) -> Any:
  """Runs what `choose` gives for the platform that compiles the program.

  Args:
    table: Implementations of the operation in order of preference.
    operation: Name of the operation, for errors.
    name: Name of an implementation, or 'auto' for any.
    problem: Static sizes, whatever the table's rows take.
    *arrays: Pytrees of arrays that the rows take.

  Raises:
    ValueError: The name is unknown, or no implementation of that name serves.
  """
  lookup.find(dict.fromkeys(names(table)), name, f'{operation}: implementation')
  calls = {}
  branches = {}
  for platform in PLATFORMS:
    if row := choose(table, name, problem, platform):
      calls.setdefault(row.run, functools.partial(row.run, problem))
      branches[platform] = calls[row.run]
  if not branches:
    _raise_why_not(table, operation, name, problem)
  arrays = sharding.vary_alike(*arrays)
  if len(calls) == 1:
    [call] = calls.values()
    return call(*arrays)
  return lax.platform_dependent(*arrays, **branches)


def _raise_why_not(table, operation, name, problem):
  reasons = {row: row.why_not(problem) for row in table}
  why = dict.fromkeys(x for row, x in reasons.items() if row.name == name)
  others = names([row for row in table if reasons[row] is None])
  raise ValueError(
    f'{operation}: {name!r} cannot serve: {" ".join(why)} These can: '
    f'{", ".join(map(repr, others))}.'
  )
