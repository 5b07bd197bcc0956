"""Compilation of an update for devices that need not be there."""

import functools
import importlib.util
import os
import re
import time

import jax
import ml_collections
from jax.experimental import topologies

from acmix_jax import tasks
from acmix_jax.tools.aot import hlo, roofline
from acmix_jax.train import mesh as mesh_lib
from acmix_jax.train import optim, state

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
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=topology
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f'topology={topology!r}: {error}; v5e:2x2, v5e:16x16, v5p:2x2x1 and '
      'v6e:4x4 exist, for example.'
    ) from error
  return list(description.devices)


def lower_train_step(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> jax.stages.Lowered:
  """The update of a training, traced for the mesh.

  The learning rates are those of a training of 100 epochs of 1000 updates,
  which are constants of the program: nothing depends on them.

  Raises:
    ValueError: a field that cannot work.
  """
  settings = config.train
  mesh_lib.check_batch_size(
    'train.batch_size',
    settings.batch_size,
    mesh.size * settings.accumulate_steps,
  )
  task = tasks.make_task(config)
  schedule = optim.make_schedule(
    config.optim,
    num_steps=100_000,
    steps_per_epoch=1000,
    batch_size=settings.batch_size,
  )
  optimizer = optim.make_optimizer(config.optim, schedule)
  init = functools.partial(
    state.init_state, task, optimizer, ema_decay=settings.ema_decay
  )
  shapes = jax.eval_shape(init, jax.random.key(config.seed))
  train_step = state.make_train_step(
    task,
    optimizer,
    seed=config.seed,
    accumulate_steps=settings.accumulate_steps,
    ema_decay=settings.ema_decay,
  )
  return state.jit_train_step(train_step, shapes, mesh).lower(
    shapes, task.batch_shapes(settings.batch_size)
  )


def compile_train_step(
  config: ml_collections.ConfigDict, topology: str
) -> roofline.Report:
  """Compiles the update of a config for a topology.

  Raises:
    ModuleNotFoundError: libtpu is not installed.
    ValueError: no such topology, or a field that cannot work.
  """
  devices = topology_devices(topology)
  kind = devices[0].device_kind
  if kind not in roofline.CHIPS:
    raise ValueError(f'{kind} is unknown; known: {", ".join(roofline.CHIPS)}.')
  mesh = mesh_lib.make_mesh(config.mesh, devices)
  report = functools.partial(
    roofline.Report,
    model=config.model.name,
    topology=topology,
    mesh=dict(mesh.shape),
    chip=roofline.CHIPS[kind],
    images=config.train.batch_size // mesh.size,
  )
  start = time.perf_counter()
  lowered = lower_train_step(config, mesh)
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
      collectives={},
      compile_seconds=time.perf_counter() - start,
      advice=advise(config, mesh),
    )
  seconds = time.perf_counter() - start
  memory = _memory(compiled)
  program = hlo.Program(compiled.as_text())
  fits = memory.total <= roofline.CHIPS[kind].memory
  return report(
    memory=memory,
    needed=memory.total,
    fits=fits,
    flops=compiled.cost_analysis()['flops'] + program.flops_of_repetition(),
    moved_bytes=program.moved_bytes(),
    recomputed=program.recomputed(),
    collectives=program.collectives(),
    compile_seconds=seconds,
    advice=[] if fits else advise(config, mesh),
  )


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
