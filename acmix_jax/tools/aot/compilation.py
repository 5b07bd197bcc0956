"""Compilation of an update for devices that need not be there."""

import contextlib
import functools
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence

import jax
import ml_collections
from jax.experimental import topologies

from acmix_jax import lookup
from acmix_jax.tools.aot import hlo, roofline
from acmix_jax.train import build
from acmix_jax.train import mesh as mesh_lib

# Epochs of a config have so many updates: there is no data to ask. They change
# constants of the program only, the learning rates.
_STEPS_PER_EPOCH = 1000

# libtpu looks for the machine that it is on unless it is told.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  # Nothing is run: several may compile at a time.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def topology_devices(topology: str) -> list[jax.Device]:
  """Devices to compile for; nothing can run on them.

  Args:
    topology: generation and chips along each axis, e.g. 'v5e:16x16'.

  Raises:
    ModuleNotFoundError: libtpu is not installed.
    ValueError: there is no such topology.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ModuleNotFoundError(
      "The TPU compiler is missing: pip install 'jax[tpu]'."
    )
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  # What is computed on the way needs no TPU, and must not wait for one.
  jax.config.update('jax_platforms', 'cpu')
  try:
    devices = _describe(topology)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f'topology={topology!r}: {error}; v5e:2x2, v5e:16x16, v4:2x2x1, '
      'v5p:2x2x1, v6e:4x4 and tpu7x:2x2x1 exist, for example.'
    ) from error
  if any(device.core_on_chip for device in devices):
    # Of v4 the two cores of a chip are one device, as they are on a pod.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      devices = _describe(topology, chip_config_name='megacore')
  return devices


def _describe(topology, **options):
  description = topologies.get_topology_desc(
    platform='tpu', topology_name=topology, **options
  )
  return list(description.devices)


def make_training(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> build.Training:
  """The training of a config on given devices; needs no data.

  Raises:
    ValueError: a field that cannot work.
  """
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  return build.Training(config, mesh, steps_per_epoch=_STEPS_PER_EPOCH)


def lower_update(
  training: build.Training, batch: dict[str, jax.ShapeDtypeStruct]
) -> jax.stages.Lowered:
  """The update of a training, traced for its mesh and batches of a canvas."""
  return training.update.lower(training.state_shapes, batch)


def compile_updates(
  config: ml_collections.ConfigDict,
  topology: str,
  *,
  by_operation: bool = False,
) -> Iterator[roofline.Report]:
  """Compiles the update of a config for a topology, once for each canvas.

  Args:
    config: Config.
    topology: As of `topology_devices`.
    by_operation: Whether the reports have the operations.

  Raises:
    ModuleNotFoundError: libtpu is not installed.
    ValueError: no such topology, or a field that cannot work.
  """
  devices = topology_devices(topology)
  kind = devices[0].device_kind
  if kind not in roofline.CHIPS:
    raise ValueError(lookup.unknown('Device', kind, roofline.CHIPS))
  training = make_training(config, devices)
  for batch in training.task.batch_shapes('train'):
    yield _compile(
      training, batch, topology, roofline.CHIPS[kind], by_operation
    )


def _compile(training, batch, topology, chip, by_operation):
  """Report on the update of batches of one canvas."""
  config, mesh = training.config, training.mesh
  report = functools.partial(
    roofline.Report,
    model=_model_name(config.model),
    topology=topology,
    mesh=dict(mesh.shape),
    chip=chip,
    batch={name: x.shape for name, x in batch.items()},
    images=config.train.batch_size // mesh.size,
  )
  start = time.perf_counter()
  lowered = lower_update(training, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = _exhausted(str(error))
    if needed is None:
      raise
    return report(
      memory=None,
      needed=needed,
      fits=False,
      flops=0,
      moved_bytes=0,
      recomputed=0,
      loops=[],
      collectives={},
      compile_seconds=time.perf_counter() - start,
      advice=advise(config, mesh),
    )
  seconds = time.perf_counter() - start
  memory = _memory(compiled)
  program = hlo.Program(compiled.as_text())
  fits = memory.total <= chip.memory
  return report(
    memory=memory,
    needed=memory.total,
    fits=fits,
    flops=compiled.cost_analysis()['flops'] + program.flops_of_repetition(),
    moved_bytes=program.moved_bytes(),
    recomputed=program.recomputed(),
    loops=program.open_loops(),
    collectives=program.collectives(),
    compile_seconds=seconds,
    advice=[] if fits else advise(config, mesh),
    operations=program.operations() if by_operation else [],
  )


def _model_name(model: ml_collections.ConfigDict) -> str:
  """The model's name, with that of its backbone if it has one."""
  parts = [model.name, *(model[key] for key in ('backbone',) if key in model)]
  return ':'.join(parts)


def advise(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> list[str]:
  """Settings that need less memory, the cheapest first."""
  advice = []
  if config.model.dtype == 'float32':
    advice.append('--config.model.dtype=bfloat16: halves the activations')
  if config.model.remat == 'none':
    advice.append(
      '--config.model.remat=products: computes norms and activations twice'
    )
  if config.model.remat != 'block':
    advice.append('--config.model.remat=block: computes each block twice')
  train = config.train
  parts, images = train.accumulate_steps, train.batch_size // mesh.size
  if images % (2 * parts) == 0:
    advice.append(
      f'--config.train.accumulate_steps={2 * parts}: halves the activations; '
      'batch statistics are those of smaller parts'
    )
  model = 2 * mesh.shape['model']
  if mesh.size % model == 0:
    advice.append(
      f'--config.mesh.model={model}: halves parameters and optimiser state, '
      'for gathers of the parameters'
    )
  if images % 2 == 0:
    advice.append(
      f'--config.train.batch_size={train.batch_size // 2}: another training'
    )
  return advice


def _memory(compiled) -> roofline.Memory:
  stats = compiled.memory_analysis()
  return roofline.Memory(
    arguments=stats.argument_size_in_bytes,
    results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    temporary=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )


def _exhausted(message: str) -> int | None:
  """Bytes that the compiler needed where it found too little memory."""
  match = re.search(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm', message)
  if not match:
    return None
  return round(float(match[1]) * 1024 ** ' KMGT'.index(match[2] or ' '))
