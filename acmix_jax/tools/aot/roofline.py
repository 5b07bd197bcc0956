"""Report on a compiled update, with a bound from the peaks of the device."""

import dataclasses
from typing import NamedTuple

from acmix_jax.tools.aot import hlo

_GIB = 2**30
# Operations of a report.
_COSTLIEST = 20


class Chip(NamedTuple):
  """Peaks of one device of a topology.

  Attributes:
    name: Name of the generation.
    flops: Peak of dense bfloat16 products, flops a second.
    bandwidth: Bandwidth of the main memory, bytes a second.
    memory: Main memory that the compiler lets a program use, bytes.
  """

  name: str
  flops: float
  bandwidth: float
  memory: float


# By kind of device, from cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e and
# tpu7x. Memory is what the compiler of libtpu 0.0.42.1 names when a program
# exceeds it. Of v3 and TPU7x each core is a device, with half of the peaks.
CHIPS = {
  'TPU v3': Chip('v3 core', 61.5e12, 450e9, 15.48 * _GIB),
  'TPU v4': Chip('v4', 275e12, 1228e9, 30.75 * _GIB),
  'TPU v5 lite': Chip('v5e', 197e12, 819e9, 15.75 * _GIB),
  'TPU v5': Chip('v5p', 459e12, 2765e9, 95.74 * _GIB),
  'TPU v6 lite': Chip('v6e', 918e12, 1640e9, 31.25 * _GIB),
  'TPU7x': Chip('TPU7x core', 1153.5e12, 3690e9, 94.75 * _GIB),
}


class Published(NamedTuple):
  """A published speed of a training, and the bound of the same update here.

  Attributes:
    speed: Images a second and chip.
    bound: At most so many by `Report.bounds`.
    source: What it is and where it stands.
  """

  speed: float
  bound: float
  source: str


# In Google/results/tpu-v4-16-TF/resnet of mlcommons/training_results_v0.7: four
# epochs of 1,281,167 images in 184.2 s on 8 chips, 256 images each, with an
# evaluation. Bound: configs/resnet50.py --topology=v4:2x2x2
# --config.train.batch_size=2048 --config.model.dtype=bfloat16.
PUBLISHED = Published(
  3478, 5104, 'ResNet-50 on 8 chips of v4, MLPerf Training v0.7'
)


@dataclasses.dataclass(frozen=True)
class Memory:
  """Memory that an update takes on one device, in bytes.

  Attributes:
    arguments: State and batch.
    results: Results that do not take the place of arguments.
    temporary: Arrays that live during the update only, mostly activations.
    code: Compiled program.
  """

  arguments: int
  results: int
  temporary: int
  code: int

  @property
  def total(self) -> int:
    """Sum of the parts."""
    return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Report:
  """What one device does in an update.

  Attributes:
    model: Name of the model.
    topology: Topology that was asked for.
    mesh: Number of devices along each axis.
    chip: Peaks of the device.
    batch: Shapes of the arrays of a batch, over all devices.
    images: Number of images that the device computes.
    memory: Memory that the update takes; None where the compiler gave up.
    needed: Bytes of memory, as far as known.
    fits: Whether the device has that memory.
    flops: Flops of products and kernels.
    moved_bytes: Bytes moved to and from the main memory.
    recomputed: Number of results that the compiler makes twice to save memory.
    loops: One turn of each loop whose length the data decide; it counts as one
      turn.
    collectives: Exchanges with other devices, by kind.
    compile_seconds: Time of tracing and compiling on this machine.
    advice: Fields to change if the update does not fit.
    operations: What moves bytes or multiplies; empty if it was not asked for.
  """

  model: str
  topology: str
  mesh: dict[str, int]
  chip: Chip
  batch: dict[str, tuple[int, ...]]
  images: int
  memory: Memory | None
  needed: int
  fits: bool
  flops: float
  moved_bytes: int
  recomputed: int
  loops: list[hlo.Operation]
  collectives: dict[str, hlo.Collective]
  compile_seconds: float
  advice: list[str]
  operations: list[hlo.Operation] = dataclasses.field(default_factory=list)

  @property
  def bounds(self) -> dict[str, float]:
    """Least seconds that the products and the bytes can take."""
    return {
      'products': self.flops / self.chip.flops,
      'memory': self.moved_bytes / self.chip.bandwidth,
    }


def costliest(
  operations: list[hlo.Operation], chip: Chip
) -> list[hlo.Operation]:
  """The operations that bound the time most, the costliest first."""

  def seconds(operation):
    return max(operation.flops / chip.flops, operation.bytes / chip.bandwidth)

  return sorted(operations, key=seconds, reverse=True)[:_COSTLIEST]


def as_json(report: Report) -> dict:
  """The report and its bounds as plain values."""
  return dataclasses.asdict(report) | {
    'chip': report.chip._asdict(),
    'collectives': {
      kind: found._asdict() for kind, found in report.collectives.items()
    },
    **{
      name: [x._asdict() for x in costliest(operations, report.chip)]
      for name, operations in (
        ('operations', report.operations),
        ('loops', report.loops),
      )
    },
    'bounds': report.bounds,
  }


def as_text(report: Report) -> str:
  """The report for people, a line for each of what is counted."""
  chip = report.chip
  sizes = ' x '.join(f'{name} {size}' for name, size in report.mesh.items())
  lines = [
    f'{report.model} on {report.topology} ({sizes}), {report.images} images '
    f'on each {chip.name}; compiled in {report.compile_seconds:.0f} s',
    'batch        '
    + ', '.join(
      f'{name} {"x".join(map(str, shape))}'
      for name, shape in report.batch.items()
    ),
  ]
  if report.memory is not None:
    lines += _lines_of_program(report)
  verdict = 'fits' if report.fits else 'DOES NOT FIT'
  lines.append(f'{verdict:12s} {_size(report.needed)} of {_size(chip.memory)}')
  if report.recomputed:
    lines.append(
      f'tight        the compiler makes {report.recomputed} results twice to '
      'make it fit'
    )
  if report.loops:
    lines.append(
      f'loops        {len(report.loops)} whose length the data decide count as '
      'one turn'
    )
  if report.operations:
    lines += _table('operation', report.operations, chip)
    lines += _table('one turn of a loop', report.loops, chip)
  if report.advice:
    lines += ['Change one or more of', *(f'  {line}' for line in report.advice)]
  return '\n'.join(lines)


def _table(title, operations, chip):
  """The costliest operations, below a head if there are any."""
  lines = [
    f'  {operation.bytes / chip.bandwidth * 1e3:9.3f}'
    f'  {operation.flops / chip.flops * 1e3:11.3f}  {operation.count:5d}'
    f'  {operation.module or "(added by the compiler)"} ({operation.kind})'
    for operation in costliest(operations, chip)
  ]
  return lines and [f'  memory ms  products ms  times  {title}', *lines]


def _lines_of_program(report: Report) -> list[str]:
  """What the compiled program needs, moves, exchanges and takes at least."""
  parts = dataclasses.asdict(report.memory)
  sizes = ', '.join(f'{name} {_size(size)}' for name, size in parts.items())
  slowest = max(report.bounds.values())
  bounds = ', '.join(
    f'{name} {seconds * 1e3:.3g} ms' for name, seconds in report.bounds.items()
  )
  total = report.images * report.mesh['data'] * report.mesh['model'] / slowest
  share = PUBLISHED.speed / PUBLISHED.bound
  return [
    f'memory       {sizes}',
    f'moved        {_size(report.moved_bytes)}',
    *(
      f'exchanged    {found.count} {kind}, {_size(found.bytes)}'
      for kind, found in sorted(report.collectives.items())
    ),
    f'at least     {slowest * 1e3:.3g} ms ({bounds}): at most {total:,.0f} '
    'images/s; links between chips are not modelled',
    f'expect       about {share * total:,.0f} images/s, {share:.0%} of that, '
    f'as published: {PUBLISHED.source}, {PUBLISHED.speed:,} of '
    f'{PUBLISHED.bound:,} images/s and chip',
  ]


def _size(count: float) -> str:
  for unit, size in (('GiB', _GIB), ('MiB', 2**20)):
    if count >= size:
      return f'{count / size:.2f} {unit}'
  return f'{count / 1024:.1f} KiB'
