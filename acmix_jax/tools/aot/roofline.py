"""What a program needs of a device, in words and against its peaks."""

import dataclasses
from typing import NamedTuple

from acmix_jax.tools.aot import hlo

_GIB = 2**30


class Chip(NamedTuple):
  """What a device of a topology has.

  Attributes:
    name: of the generation.
    flops: a second, dense products of bfloat16.
    bandwidth: bytes a second of the memory.
    memory: bytes that the compiler lets a program use.
  """

  name: str
  flops: float
  bandwidth: float
  memory: float


# By kind of device, from cloud.google.com/tpu/docs/v4, v5e, v5p and v6e. A chip
# of v4 shows as two devices, its cores, and each has half of it. The memory is
# what the compiler of libtpu 0.0.42.1 names when a program exceeds it.
CHIPS = {
  'TPU v4': Chip('v4 core', 275e12 / 2, 1228e9 / 2, 15.25 * _GIB),
  'TPU v5 lite': Chip('v5e', 197e12, 819e9, 15.75 * _GIB),
  'TPU v5': Chip('v5p', 459e12, 2765e9, 95.74 * _GIB),
  'TPU v6 lite': Chip('v6e', 918e12, 1640e9, 31.25 * _GIB),
}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device.

  Attributes:
    arguments: state and batch.
    results: those that do not replace arguments.
    temporary: what lives during the update, activations above all.
    code: the program.
  """

  arguments: int
  results: int
  temporary: int
  code: int

  @property
  def total(self) -> int:
    """All of it."""
    return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Report:
  """What one device does in an update.

  Attributes:
    model: name of the model.
    topology: as asked for.
    mesh: devices along each axis.
    chip: what the device has.
    images: that the device computes.
    memory: that it needs; None where the compiler gave up.
    needed: bytes, as far as known.
    fits: whether the memory is enough.
    flops: of products and kernels.
    moved_bytes: to and from the memory.
    recomputed: results that the compiler makes twice to make it fit.
    collectives: exchanges by kind.
    compile_seconds: that tracing and compiling took here.
    advice: fields to change where it does not fit.
  """

  model: str
  topology: str
  mesh: dict[str, int]
  chip: Chip
  images: int
  memory: Memory | None
  needed: int
  fits: bool
  flops: float
  moved_bytes: int
  recomputed: int
  collectives: dict[str, hlo.Collective]
  compile_seconds: float
  advice: list[str]

  @property
  def bounds(self) -> dict[str, float]:
    """Seconds that the products and the bytes take at least."""
    return {
      'products': self.flops / self.chip.flops,
      'memory': self.moved_bytes / self.chip.bandwidth,
    }


def as_json(report: Report) -> dict:
  """The report and its bounds as plain values."""
  return dataclasses.asdict(report) | {
    'chip': report.chip._asdict(),
    'collectives': {
      kind: found._asdict() for kind, found in report.collectives.items()
    },
    'bounds': report.bounds,
  }


def as_text(report: Report) -> str:
  """The report for people, a line for each of what is counted."""
  chip = report.chip
  sizes = ' x '.join(f'{name} {size}' for name, size in report.mesh.items())
  lines = [
    f'{report.model} on {report.topology} ({sizes}), {report.images} images '
    f'on each {chip.name}; compiled in {report.compile_seconds:.0f} s'
  ]
  if report.memory is not None:
    parts = dataclasses.asdict(report.memory)
    lines.append(
      'memory       '
      + ', '.join(f'{name} {_size(size)}' for name, size in parts.items())
    )
    lines.append(f'moved        {_size(report.moved_bytes)}')
    lines += [
      f'exchanged    {found.count} {kind}, {_size(found.bytes)}'
      for kind, found in sorted(report.collectives.items())
    ]
    slowest = max(report.bounds.values())
    bounds = ', '.join(
      f'{name} {seconds * 1e3:.3g} ms'
      for name, seconds in report.bounds.items()
    )
    total = report.images * report.mesh['data'] * report.mesh['model'] / slowest
    lines.append(
      f'at least     {slowest * 1e3:.3g} ms ({bounds}): at most {total:,.0f} '
      'images/s; links between chips are not modelled'
    )
  verdict = 'fits' if report.fits else 'DOES NOT FIT'
  lines.append(f'{verdict:12s} {_size(report.needed)} of {_size(chip.memory)}')
  if report.recomputed:
    lines.append(
      f'tight        the compiler makes {report.recomputed} results twice to '
      'make it fit'
    )
  if report.advice:
    lines += ['Change one or more of', *(f'  {line}' for line in report.advice)]
  return '\n'.join(lines)


def _size(count: float) -> str:
  for unit, size in (('GiB', _GIB), ('MiB', 2**20)):
    if count >= size:
      return f'{count / size:.2f} {unit}'
  return f'{count / 1024:.1f} KiB'
