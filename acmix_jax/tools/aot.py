r"""Compiles the update of a config for a TPU pod that need not be there.

    python -m acmix_jax.tools.aot configs/resnet50_acmix.py \
        --topology=v5e:16x16 --config.train.batch_size=65536 \
        --config.model.dtype=bfloat16 [--json]

The real compiler (`pip install 'jax[tpu]'`) runs on any machine, here without
data: shapes are all it needs. It prints, for one chip, the memory, the bytes
moved to and from it, what is exchanged with other chips, and the time that no
program with these products and bytes can beat. An exit status of 1 says that it
does not fit, and the output which field to change.

The bound is the greater of two: products at the peak of bfloat16, and bytes at
the bandwidth of the memory. The links between chips are not modelled, nor is
any latency: a real update takes longer.
"""

import argparse
import functools
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections
from absl import flags
from jax.experimental import topologies
from ml_collections import config_flags

from acmix_jax import tasks
from acmix_jax.tools import hlo, roofline
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


def _config(path: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
  """The config of a file with fields set as main.py's flags set them.

  Raises:
    ValueError: no such file, field or value.
  """
  if not os.path.exists(path.partition(':')[0]):
    raise ValueError(f'{path}: there is no such file.')
  arguments = ['aot', f'--config={path}', *overrides]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=arguments
  )
  try:
    values(arguments)
  except (AttributeError, flags.Error) as error:
    raise ValueError(str(error)) from error
  return holder.value


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 1 for what does not fit, 2 for what is wrong."""
  parser = argparse.ArgumentParser(
    prog='python -m acmix_jax.tools.aot',
    description='Compiles the update of a config for a TPU pod that need not '
    'be there. Fields of the config follow as --config.FIELD=VALUE.',
    allow_abbrev=False,
  )
  parser.add_argument('config', metavar='CONFIG.py')
  parser.add_argument('--topology', required=True, help='e.g. v5e:16x16')
  parser.add_argument('--json', action='store_true', help='print a JSON object')
  args, overrides = parser.parse_known_args(argv)
  try:
    config = _config(args.config, overrides)
    report = compile_train_step(config, args.topology)
  except KeyError as error:
    print(f'aot: {error.args[0]}', file=sys.stderr)
    return 2
  except (ImportError, ValueError) as error:
    print(f'aot: {error}', file=sys.stderr)
    return 2
  if args.json:
    print(json.dumps(roofline.as_json(report), indent=2))
  else:
    print(roofline.as_text(report))
  return 0 if report.fits else 1


if __name__ == '__main__':
  sys.exit(main())
