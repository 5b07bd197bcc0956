"""Both paths of ACmix: local attention and the convolution, in one operator."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import implementations, local_attention, shift_convolution
from acmix_jax.ops.local_acmix import geometry, pallas_tpu
from acmix_jax.ops.local_attention import api


def _separate(problem, q, k, v, slopes, kernel, alpha):
  attended = implementations.run(
    local_attention.IMPLEMENTATIONS,
    'local_attention',
    'auto',
    problem.attention,
    *(q, k, v, slopes),
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


# In order of preference.
IMPLEMENTATIONS = (
  # A fused kernel, which reads each map once.
  implementations.Implementation(
    'pallas', ('tpu',), pallas_tpu.why_not, pallas_tpu.combine
  ),
  # One operator after the other.
  implementations.Implementation(
    'separate', implementations.PLATFORMS, implementations.always, _separate
  ),
  # Slow, for tests.
  implementations.Implementation(
    'pallas', ('cpu', 'rocm'), pallas_tpu.why_not, pallas_tpu.interpret
  ),
)


def local_acmix(
  q: Float[Array, 'b h w n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
  slopes: Float[Array, '2 d'],
  kernel: Float[Array, 'kh kw m f'],
  alpha: Float[Array, ''],
  *,
  kernel_size: int = 7,
  dilation: int = 1,
  implementation: str = 'auto',
) -> Float[Array, 'b h w f']:
  """The sum alpha * local attention + grouped convolution of q, k and v.

  Args:
    q: Queries, not scaled.
    k: Keys.
    v: Values.
    slopes: Change of the encoding of a pixel by row and by column.
    kernel: Weights of the convolution, a group for each channel: of q, k and v
      after each other, m = 3 * n.
    alpha: Factor of the attention.
    kernel_size: Odd side of the window of the attention.
    dilation: Pixels between neighbouring keys, and taps.
    implementation: 'auto', or a name of `IMPLEMENTATIONS`.

  Returns:
    The sum, in the dtype of v.

  Raises:
    ValueError: Shapes disagree, the window is not centred, the map is too
      small to reflect, or the implementation is unknown or cannot serve.
  """
  api.check(q, k, v, slopes, kernel_size, 1, dilation)
  problem = geometry.describe(q, k, v, kernel, kernel_size, dilation)
  return implementations.run(
    IMPLEMENTATIONS,
    'local_acmix',
    implementation,
    problem,
    *(q, k, v, slopes.astype(jnp.float32), kernel, alpha.astype(jnp.float32)),
  )
