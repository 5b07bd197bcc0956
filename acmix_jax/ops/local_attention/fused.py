"""What the fused kernels of Pallas share."""

from collections.abc import Callable
from typing import Any

import jax

from acmix_jax.ops import derivatives
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
