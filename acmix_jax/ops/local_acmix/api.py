"""A layer of ACmix on local attention, in one operator."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import (
  dense,
  implementations,
  local_attention,
  sharding,
  shift_convolution,
)
from acmix_jax.ops.local_acmix import geometry, pallas_tpu
from acmix_jax.ops.local_attention import api


def _separate(problem, x, projection, bias, slopes, kernel, alpha):
  heads = (*x.shape[:3], -1, problem.attention.depth)
  q, k, v = (
    dense.dense(x, projection[i], bias[i]).reshape(heads) for i in range(3)
  )
  strides = problem.attention.strides
  attended = implementations.run(
    local_attention.IMPLEMENTATIONS,
    'local_attention',
    'auto',
    problem.attention,
    *(q[:, ::strides, ::strides], k, v, slopes),
  )
  convolved = implementations.run(
    shift_convolution.IMPLEMENTATIONS,
    'shift_convolution',
    'auto',
    problem.convolution,
    *([q, k, v], kernel),
  )
  attended = attended.reshape(convolved.shape)
  return alpha.astype(v.dtype) * attended + convolved


IMPLEMENTATIONS = implementations.whole_layer(pallas_tpu, _separate)


def local_acmix(
  x: Float[Array, 'b h w c'],
  projection: Float[Array, '3 c f'],
  bias: Float[Array, '3 f'],
  slopes: Float[Array, '2 d'],
  kernel: Float[Array, 'kh kw m f'],
  alpha: Float[Array, ''],
  *,
  kernel_size: int = 7,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'auto',
) -> Float[Array, 'b ho wo f']:
  """The sum alpha * local attention(q, k, v) + grouped convolution(q, k, v).

    q, k, v = x @ projection[i] + bias[i], f // d heads of d channels each

  Args:
    x: Map.
    projection: Weights of the queries, which are not scaled, keys and values.
    bias: Their biases.
    slopes: Change of the encoding of a pixel by row and by column.
    kernel: Weights of the convolution, a group for each channel of a head: of
      q, k and v after each other, m = 3 * heads.
    alpha: Factor of the attention.
    kernel_size: Odd side of the window of the attention.
    strides: Pixels between outputs.
    dilation: Pixels between neighbouring keys, and taps.
    implementation: 'auto', or a name of `IMPLEMENTATIONS`.

  Returns:
    The sum, in the dtype of x.

  Raises:
    ValueError: The window is not centred, the map is too small to reflect, or
      the implementation is unknown or cannot serve.
  """
  window = kernel_size, strides, dilation
  api.check_window(*x.shape[1:3], *window)
  varying = sharding.varies(x, projection, bias, slopes, kernel, alpha)
  problem = geometry.describe(x, slopes, kernel, *window, varying=varying)
  return implementations.run(
    IMPLEMENTATIONS,
    'local_acmix',
    implementation,
    problem,
    *(x, projection, bias, slopes.astype(jnp.float32)),
    *(kernel, alpha.astype(jnp.float32)),
  )
