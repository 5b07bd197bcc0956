"""A layer of ACmix on window attention, in one operator."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import (
  dense,
  implementations,
  sharding,
  shift_convolution,
  shifted_windows,
  xla_cpu,
)
from acmix_jax.ops.window_acmix import geometry, pallas_tpu


def _separate(
  problem, x, projection, bias, window_bias, out_kernel, kernel, offset
):
  heads = (*x.shape[:3], -1, problem.attention.depth)
  maps = dense.dense(x, projection, bias).reshape(heads)
  attended = implementations.run(
    shifted_windows.IMPLEMENTATIONS,
    'window_attention',
    'auto',
    problem.attention,
    *(maps, window_bias),
  )
  if problem.valid is not None:
    maps = jnp.where(problem.valid[None, :, :, None, None], maps, 0)
  convolved = implementations.run(
    shift_convolution.IMPLEMENTATIONS,
    'shift_convolution',
    'auto',
    problem.convolution,
    *([maps], kernel),
  )
  attended = attended.reshape(convolved.shape)
  convolved = xla_cpu.add_to_each(convolved, offset.astype(convolved.dtype))
  return dense.dense(attended, out_kernel) + convolved


IMPLEMENTATIONS = implementations.whole_layer(pallas_tpu, _separate)


def window_acmix(
  x: Float[Array, 'b h w c'],
  projection: Float[Array, 'c m'],
  bias: Float[Array, ' m'],
  window_bias: Float[Array, 'n t t'],
  out_kernel: Float[Array, 'f f'],
  kernel: Float[Array, 'kh kw k f'],
  offset: Float[Array, 'h w f'],
  *,
  window_size: int,
  size: tuple[int, int] | None = None,
  shift: int = 0,
  attend_padding: bool = False,
  implementation: str = 'auto',
) -> Float[Array, 'b h w f']:
  """The sum of both paths of ACmix on a map of whole windows.

    q, k, v = x @ projection + bias
    out = window attention(q, k, v) @ out_kernel
      + grouped convolution(q, k, v) + offset

  Args:
    x: Map of whole windows.
    projection: Weights of the queries, which are not scaled, keys and values
      after each other, m = 3 * f.
    bias: Their biases.
    window_bias: Added to the scaled logits of a query (first) and a key.
    out_kernel: Weights of the output projection of the attention.
    kernel: Weights of the convolution, a group for each channel of a head: of
      q, k and v after each other, k = 3 * n.
    offset: Added to each image.
    window_size: Side of a window.
    size: Rows and columns of the map but for its padding, which is zeros to
      the convolution; None: it has none.
    shift: Rows and columns the map was rolled by: see
      `shifted_windows.shift_regions`.
    attend_padding: Whether pixels attend to padding, too.
    implementation: 'auto', or a name of `IMPLEMENTATIONS`.

  Returns:
    The sum, in the dtype of x.

  Raises:
    ValueError: The map is not made of whole windows, or the implementation is
      unknown or cannot serve.
  """
  window_bias = window_bias.astype(jnp.float32)
  arrays = x, projection, bias, window_bias, out_kernel, kernel, offset
  shifted_windows.check_whole('window_acmix', *x.shape[1:3], window_size)
  problem = geometry.describe(
    *(x, window_bias, kernel, window_size),
    size=size or x.shape[1:3],
    shift=shift,
    attend_padding=attend_padding,
    varying=sharding.varies(*arrays),
  )
  return implementations.run(
    IMPLEMENTATIONS,
    'window_acmix',
    implementation,
    problem,
    *arrays,
  )
