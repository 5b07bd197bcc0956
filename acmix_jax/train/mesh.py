"""Processes, devices and shardings; no other module decides on them."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from acmix_jax.train import processes

logger = logging.getLogger(__name__)

# Arrays of fewer elements are replicated: a gather costs more than it saves.
MIN_SHARDED_SIZE = 2**14

_PROCESS_VARIABLES = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
)


def initialize_processes() -> None:
  """Joins the processes of one training; call before any other use of jax.

  With JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID set, these are used. Otherwise jax looks for a TPU pod, Slurm,
  Open MPI or Kubernetes; on a plain machine nothing happens. Under Slurm and
  Open MPI jax gives every process one GPU, the one of its local rank; set
  JAX_LOCAL_DEVICE_IDS=0,1,... for a process that uses several.

  Raises:
    ValueError: only some of the three variables are set.
  """
  given = {
    name: os.environ[name] for name in _PROCESS_VARIABLES if name in os.environ
  }
  if given:
    if len(given) != len(_PROCESS_VARIABLES):
      missing = sorted(set(_PROCESS_VARIABLES) - set(given))
      raise ValueError(
        f'{", ".join(given)} set, but not {", ".join(missing)}; set all of '
        f'{", ".join(_PROCESS_VARIABLES)}, or none for automatic detection.'
      )
    jax.distributed.initialize(
      coordinator_address=given['JAX_COORDINATOR_ADDRESS'],
      num_processes=int(given['JAX_NUM_PROCESSES']),
      process_id=int(given['JAX_PROCESS_ID']),
    )
    return
  if os.environ.get('SLURM_NTASKS') == '1':
    # jax would leave one of the machine's GPUs to a lone Slurm task.
    return
  try:
    jax.distributed.initialize()
  except ValueError as error:
    # This is the message of jax on a machine that belongs to no cluster.
    if 'coordinator_address' not in str(error):
      raise


def make_mesh(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Mesh with the axes ('data', 'model'), over which processes are connected.

  Args:
    config: section `mesh` of a config: the sizes `data` (-1: all devices that
      `model` leaves) and `model`. A mesh smaller than the machine uses its
      first devices (one process only).
    devices: devices to choose from; None: all devices.

  Raises:
    ValueError: the sizes do not fit the devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  data, model = config.data, config.model
  if model < 1 or data == 0 or data < -1:
    raise ValueError(
      f'mesh.data={data}, mesh.model={model}: sizes are at least 1 '
      '(mesh.data also -1, all remaining devices).'
    )
  if data == -1:
    if count % model:
      raise ValueError(
        f'mesh.model={model} does not divide the {count} devices; the nearest '
        f'that does: {_nearest_divisor(count, model)}.'
      )
    data = count // model
  if data * model > count:
    raise ValueError(
      f'mesh.data={data} * mesh.model={model} = {data * model} devices, but '
      f'there are {count}; mesh.data=-1 takes what is there.'
    )
  if data * model < count and jax.process_count() > 1:
    raise ValueError(
      f'mesh.data={data} * mesh.model={model} leaves some of the {count} '
      f'devices of {jax.process_count()} processes unused; set mesh.data=-1.'
    )
  # jax.make_mesh splits no axis of the chips' grid on some generations.
  grid = mesh_utils.create_device_mesh(
    (data, model), devices[: data * model], allow_split_physical_axes=True
  )
  # jax's default is Explicit axes; jit partitioning needs Auto.
  mesh = Mesh(grid, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
  logger.info(
    '%d processes, %d devices (%s), mesh %s.',
    jax.process_count(),
    mesh.size,
    mesh.devices.flat[0].device_kind,
    dict(mesh.shape),
  )
  if jax.process_count() > 1:
    _connect(mesh)
  return mesh


def _connect(mesh: Mesh) -> None:
  """Lets processes connect now, along each axis and all together.

  jax connects them at the first computation that they share. On CPUs it waits
  30 s for the last of them, and after a compilation of minutes some are later.
  """
  processes.wait_for_all()
  shape = tuple(mesh.shape.values())
  sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
  ones = jax.make_array_from_callback(
    shape, sharding, lambda index: np.ones(shape, np.float32)[index]
  )
  sums = jax.jit(
    lambda x: [x.sum(0), x.sum(1), x.sum()], out_shardings=replicated(mesh)
  )
  jax.block_until_ready(sums(ones))


def _nearest_divisor(count: int, wanted: int) -> int:
  divisors = [n for n in range(1, count + 1) if count % n == 0]
  return min(divisors, key=lambda n: (abs(n - wanted), n))


def check_batch_size(
  field: str,
  size: int,
  multiple: int,
  meaning: str = 'the number of devices',
) -> None:
  """Checks that a batch splits evenly.

  Args:
    field: name of the config field, for the message.
    size: number of examples over all devices.
    multiple: number of devices, times the parts a batch is computed in.
    meaning: what the multiple is, for the message.

  Raises:
    ValueError: `multiple` does not divide `size`; the message has the nearest
      sizes that work.
  """
  if size < 1 or size % multiple:
    below, above = size // multiple * multiple, -(-size // multiple) * multiple
    nearest = f'{below} or {above}' if below > 0 else f'{multiple}'
    raise ValueError(
      f'{field}={size} is not a positive multiple of {multiple}, {meaning}; '
      f'nearest that works: {nearest}.'
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding that gives every device the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding that splits the leading axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'model')))


def parameter_spec(shape: tuple[int, ...], model_size: int) -> PartitionSpec:
  """Partition that splits the largest axis divisible by `model_size`.

  Fully sharded data parallelism: parameters and optimiser state rest in parts,
  and the compiler gathers a layer where it is used. Arrays smaller than
  `MIN_SHARDED_SIZE` and arrays without such an axis are replicated. The last of
  several equally long axes is split.
  """
  if model_size == 1 or np.prod(shape) < MIN_SHARDED_SIZE:
    return PartitionSpec()
  divisible = [i for i, n in enumerate(shape) if n % model_size == 0]
  if not divisible:
    return PartitionSpec()
  axis = max(divisible, key=lambda i: (shape[i], i))
  return PartitionSpec(*(None,) * axis, 'model')


def state_shardings(state: Any, mesh: Mesh) -> Any:
  """Sharding of every leaf of a tree of arrays or shapes."""
  return jax.tree.map(
    lambda x: NamedSharding(mesh, parameter_spec(x.shape, mesh.shape['model'])),
    state,
  )


def with_shardings(shapes: Any, mesh: Mesh) -> Any:
  """The tree of `jax.ShapeDtypeStruct`, each with its sharding on the mesh."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    state_shardings(shapes, mesh),
  )


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
  """The function, traced with the mesh in context.

  Fused kernels look there for the devices to split the images over (see
  `ops.sharding`); the compiler splits everything else.
  """

  @functools.wraps(function)
  def run(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return run


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict:
  """Global arrays, split over the devices, from this process's rows."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )
