"""Functions of images that no compiler can split, split over devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import sharding


def split_images(
  function: Callable[..., Any], *arrays: Any, shared: Any = ()
) -> Any:
  """Calls function(*arrays, *shared), on each device with its own images.

  The images are split over the axes of the mesh in context (`jax.set_mesh`)
  that are not manual already: none within a `jax.shard_map` over all of them,
  which needs check_vma=False. Axes are of the type Auto.
  Images that do not divide are computed by every device.

  Args:
    function: to a pytree of arrays whose first axis grows with the images.
    *arrays: pytrees of arrays [images, ...].
    shared: arguments that every device gets whole.
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
