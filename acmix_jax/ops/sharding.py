"""Functions of images that no compiler can split, split over devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax, sharding

WHY_NOT_VARYING = (
  "its results would lack the axes over which the caller's jax.shard_map lets "
  'images vary (check_vma=True).'
)


def varies(*arrays: Any) -> bool:
  """Whether any array varies over devices of a `jax.shard_map` that checks."""
  return any(map(_varying_axes, jax.tree.leaves(arrays)))


def vary_alike(*arrays: Any) -> Any:
  """Arrays that all vary over the devices that any of them varies over.

  A loop whose carry meets all of them, and a `jax.custom_vjp` that sums over
  images, then have results of the types that `jax.shard_map` checks.
  """
  axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(arrays)))

  def vary(x):
    missing = tuple(axes - _varying_axes(x))
    if not missing:
      return x
    # jax < 0.9 calls it pvary.
    if not hasattr(lax, 'pcast'):
      return lax.pvary(x, missing)
    return lax.pcast(x, missing, to='varying')

  return jax.tree.map(vary, arrays)


def _varying_axes(x):
  kind = jax.typeof(x)
  # jax < 0.10 calls it vma.
  kind = getattr(kind, 'manual_axis_type', kind)
  axes = getattr(kind, 'varying', None) or getattr(kind, 'vma', None)
  return frozenset(axes or ())


def split_images(
  function: Callable[..., Any], *arrays: Any, shared: Any = ()
) -> Any:
  """Calls function(*arrays, *shared), on each device with its own images.

  The images are split over the axes of the mesh in context (`jax.set_mesh`)
  that are not manual already: none within a `jax.shard_map` over all of them,
  which needs check_vma=False. Axes are of the type Auto.
  Images that do not divide are computed by every device.

  Args:
    function: Function to a pytree of arrays [images, ...], or of sums over
      images whose first axis a caller sums.
    *arrays: Pytrees of arrays [images, ...].
    shared: Arguments that every device gets whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(n for n in mesh.axis_names if n not in mesh.manual_axes)
  if not axes:
    return function(*arrays, *shared)
  devices = math.prod(mesh.shape[axis] for axis in axes)
  divide = len(jax.tree.leaves(arrays)[0]) % devices == 0
  images = sharding.PartitionSpec(axes if divide else None)
  return jax.shard_map(
    lambda arrays, shared: function(*arrays, *shared),
    in_specs=(images, sharding.PartitionSpec()),
    out_specs=images,
    axis_names=set(axes),
    check_vma=False,
  )(arrays, tuple(shared))
