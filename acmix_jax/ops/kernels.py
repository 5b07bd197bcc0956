"""What the kernels written in Pallas share."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from acmix_jax.ops import deferred, sharding

MIB = 2**20
# Lanes of a register, and rows of 32-bit and of 16-bit numbers in one.
LANES = 128
ALIGN = 8
SUBLANES = 16


def why_not(name: str, problem: Any, dtype: Any) -> str | None:
  """Reason why no kernel of this package can serve, or None.

  Args:
    name: 'TPU' or 'GPU'.
    problem: Description of a call with the fields `varying` and `counted`.
    dtype: Dtype of the maps.
  """
  if not problem.counted:
    return f'the kernel for {name} takes a number of images that is known.'
  if problem.varying:
    return f'of the kernel for {name}, {sharding.WHY_NOT_VARYING}'
  if dtype not in (jnp.bfloat16, jnp.float32):
    return f'the kernel for {name} takes float32 and bfloat16, not {dtype}.'
  return None


def vmem_budget() -> int:
  """Memory on chip that a program for TPU may take by its plan's estimate."""
  return _vmem_capacity() * 3 // 4


def _vmem_capacity():
  """Memory of a core of the TPU that the program is for.

  It is that of the mesh in context (`jax.set_mesh`), or of this machine, or one
  with 64 MiB (v5p, v7) where neither is a TPU. v2 to v4 have 16 MiB, v5e and
  v6e 128.
  """
  try:
    return pltpu.get_tpu_info().vmem_capacity_bytes
  except (AttributeError, ValueError):  # jax < 0.8 may lack it.
    return 64 * MIB


def too_large(plan: Any, size: Sequence[int]) -> str | None:
  """Reason why a chip has no room for a plan of maps of a size, or None.

  Args:
    plan: Plan with the field `vmem_bytes`.
    size: Rows and columns of the maps.
  """
  allowed = vmem_budget()
  if plan.vmem_bytes <= allowed:
    return None
  return (
    f'the kernel for TPU would need {plan.vmem_bytes / MIB:.0f} MiB on chip '
    f'for maps of {tuple(size)}; {allowed / MIB:.0f} are allowed.'
  )


def vmem_limit(plan: Any) -> int:
  """Memory on chip that the compiler may take for a plan."""
  return max(16 * MIB, min(plan.vmem_bytes * 5 // 4, _vmem_capacity()))


def call(
  kernel: Callable[..., None],
  platform: str,
  inputs: Sequence[jax.Array],
  outputs: Sequence[jax.ShapeDtypeStruct],
  interpret: Any,
  **options: Any,
) -> Sequence[jax.Array]:
  """Runs a kernel, which is traced where it is compiled or interpreted.

  Args:
    kernel: Function of references to the inputs and the outputs.
    platform: The platform that it is for.
    inputs: Arguments.
    outputs: Shapes and dtypes of the results.
    interpret: `interpret` of `pallas_call`.
    **options: Others of its arguments.
  """
  run = pl.pallas_call(kernel, list(outputs), interpret=interpret, **options)
  if interpret:
    return run(*inputs)
  return deferred.call(run, platform, outputs, *inputs)


def call_images(
  kernel: Callable[..., None],
  plan: Any,
  interpret: Any,
  constants: Sequence[jax.Array],
  scalars: jax.Array,
  images: Sequence[jax.Array],
  output: Sequence[int],
  blocks: Sequence[Sequence[int]],
  sums: Sequence[Sequence[int]],
  **options: Any,
) -> Sequence[jax.Array]:
  """Runs a kernel for TPU on one image after the other.

  Args:
    kernel: Function of references to the constants, scalars, images, output,
      sums and scratch memory, and of `plan`.
    plan: Plan with the field `vmem_bytes`.
    interpret: `interpret` of `pallas_call`.
    constants: Arrays that every program gets whole.
    scalars: Numbers that it reads one by one.
    images: Maps of which it gets an image [b, rows, columns, channels].
    output: Rows, columns and channels of the map that it gives.
    blocks: Those that it touches of each map and of the output; they may go
      beyond the image.
    sums: Shapes of the sums over images that it gives, one for each core.
    **options: Other arguments of `pallas_call`.
  """
  count = len(images[0])
  parts = parts_of(count)
  each = count // parts
  *specs, output_spec = (
    pl.BlockSpec((1, *block), lambda part, i: (part * each + i, 0, 0, 0))
    for block in blocks
  )
  return call(
    functools.partial(kernel, plan=plan),
    'tpu',
    [*constants, scalars, *images],
    [
      jax.ShapeDtypeStruct((count, *output), images[0].dtype),
      *(jax.ShapeDtypeStruct((parts, *shape), jnp.float32) for shape in sums),
    ],
    interpret,
    grid=(parts, each),
    in_specs=[
      *map(whole_spec, constants),
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *specs,
    ],
    out_specs=[output_spec, *map(_part_spec, sums)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=vmem_limit(plan),
    ),
    **options,
  )


def _part_spec(shape):
  """The sums of a core, the first axis of the grid."""
  return pl.BlockSpec((1, *shape), lambda part, *_: (part, *(0,) * len(shape)))


def dot(
  x: Float[Array, '_ _'], y: Float[Array, '_ _'], axis_x: int, axis_y: int
) -> Float32[Array, '_ _']:
  """Product of two matrices over one axis of each."""
  axes = ((axis_x,), (axis_y,)), ((), ())
  return lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


def repeat(count: Any, body: Callable[[Any], None]):
  """Calls body(number) so often, with 32-bit numbers beside 64-bit ones, too.

  Args:
    count: Turns, static or not.
    body: Function of the number of the turn.
  """
  if isinstance(count, int) and jax.config.jax_enable_x64:
    # From static bounds it would count in 64 bits, which Mosaic cannot convert.
    count = jnp.int32(count)
  first = 0 if isinstance(count, int) else jnp.zeros_like(count)

  def turn(number, _):
    body(lax.convert_element_type(number, jnp.int32))

  lax.fori_loop(first, count, turn, None)


def clear(refs: Sequence[Any]):
  """Makes all numbers zeros; those around a map stay so."""
  for ref in refs:
    ref[...] = jnp.zeros_like(ref)


def frame(rows: int, columns: int, channels: int) -> tuple[int, int, int, int]:
  """Shape of a frame, a float32 copy of a map on a TPU's chip.

  In 32 bits a slice may begin at any column; of 128 lanes it may have strides.

  Returns:
    Sheets of 128 channels, rows, columns in whole registers, and lanes.
  """
  sheets = -(-channels // LANES)
  return sheets, rows, round_up(columns, ALIGN), LANES


def read_frame(
  ref: Any, rows: Any, columns: Any, lanes: slice
) -> Float32[Array, 'm c']:
  """Pixels of a frame, one after the other.

  Args:
    ref: The frame.
    rows: Slice of its rows.
    columns: Slice of its columns.
    lanes: Channels; they begin with a sheet.
  """
  parts = [ref[sheet, rows, columns] for sheet in _sheets(lanes)]
  parts = [x.reshape(-1, LANES) for x in parts]
  return jnp.concatenate(parts, 1)[:, : lanes.stop - lanes.start]


def write_frame(
  ref: Any, rows: Any, columns: Any, lanes: slice, x: Float32[Array, 'm c']
):
  """The reverse of `read_frame`; sheets are written as a whole."""
  if missing := -x.shape[1] % LANES:
    x = jnp.concatenate([x, jnp.zeros((len(x), missing), x.dtype)], 1)
  for i, sheet in enumerate(_sheets(lanes)):
    part = x[:, i * LANES : (i + 1) * LANES]
    ref[sheet, rows, columns] = part.reshape(1, rows.size, columns.size, -1)


def _sheets(lanes: slice):
  """Sheets of a frame with these lanes, each as a slice."""
  first, end = lanes.start // LANES, -(-lanes.stop // LANES)
  return [slice(i, i + 1) for i in range(first, end)]


def spread_heads(x: Float[Array, 'm c'], depth: int) -> Float[Array, '_ c']:
  """[m, heads * d] -> [heads * m, heads * d], zero in other heads' lanes."""
  return jnp.concatenate(
    [jnp.where(own, x, 0) for own in _own_lanes(x.shape, depth)]
  )


def collect_heads(x: Float[Array, '_ c'], depth: int) -> Float[Array, 'm c']:
  """[heads * m, heads * d] -> [m, heads * d]: each head's lanes of its rows."""
  x = x.reshape(x.shape[1] // depth, -1, x.shape[1])
  masks = _own_lanes(x.shape[1:], depth)
  return sum(jnp.where(own, x[i], 0) for i, own in enumerate(masks))


def _own_lanes(shape, depth: int):
  """Masks of the lanes of each head."""
  lane = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
  return [
    (lane >= first) & (lane < first + depth)
    for first in range(0, shape[-1], depth)
  ]


def groups_of_heads(heads: int, depth: int) -> list[slice]:
  """Lanes of whole heads that one product takes: a register, if possible."""
  channels = size = heads * depth
  if LANES % depth == 0 or depth % LANES == 0:
    size = max(LANES, depth)
  return [
    slice(first, min(first + size, channels))
    for first in range(0, channels, size)
  ]


def whole_spec(x: jax.Array) -> pl.BlockSpec:
  """The same array for all programs."""
  return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def parts_of(images: int) -> int:
  """Halves of the images, for chips of two cores."""
  return 2 - images % 2


def round_up(size: int, multiple: int) -> int:
  """The next multiple."""
  return -(-size // multiple) * multiple


def map_bytes(size: Sequence[int], channels: int, itemsize: int) -> int:
  """Bytes of a map [rows, columns, channels] on a TPU's chip."""
  return _tiled_bytes(size, channels, itemsize, SUBLANES * 2 // itemsize)


def moved_bytes(size: Sequence[int], channels: int, itemsize: int) -> int:
  """Bytes of a map [rows, columns, channels] in a TPU's main memory."""
  return _tiled_bytes(size, channels, itemsize, 8)


def _tiled_bytes(size, channels, itemsize, tile):
  rows, columns = size
  channels = round_up(channels, LANES)
  return rows * round_up(columns, tile) * channels * itemsize
