"""What the fused kernels of Pallas share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl

from acmix_jax.ops import deferred, derivatives
from acmix_jax.ops.local_attention import tiles


def define(
  forward: Callable[..., tuple[jax.Array, Any]],
  backward: Callable[..., tuple],
) -> Callable[..., jax.Array]:
  """`derivatives.define` for functions of ((problem, interpret), *inputs).

  Other derivatives than the first gradient are those of tiles.
  """
  return derivatives.define(
    forward,
    backward,
    lambda static, *inputs: tiles.general(static[0], *inputs),
  )


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
