"""Local attention over a copy of the window of each query."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from acmix_jax.ops import cost_marks, windows
from acmix_jax.ops.local_attention import geometry


def attend(
  problem: geometry.Problem,
  q: Float[Array, 'b ho wo n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
) -> Float[Array, 'b ho wo n d']:
  """Softmax attention; the copies take k*k times the memory of k and v.

  Args:
    problem: Sizes of the arrays and the window.
    q: Queries.
    k: Keys, scaled.
    v: Values.

  Returns:
    Sums of values in the dtype of v.
  """
  logits = jnp.einsum(
    'bhwnd,bhwndt->bhwnt',
    q,
    _unfold(problem, k),
    preferred_element_type=jnp.float32,
  )
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('bhwnt,bhwndt->bhwnd', weights, _unfold(problem, v))


def _unfold(problem, x):
  """Copies each query's window: [b, ho, wo, n, d, k * k]."""
  x = x.reshape(*x.shape[:3], -1)
  with jax.named_scope(cost_marks.COPY):
    x = lax.conv_general_dilated_patches(
      windows.reflect(x, problem.reach),
      filter_shape=(problem.kernel_size,) * 2,
      window_strides=(problem.strides,) * 2,
      padding='VALID',
      rhs_dilation=(problem.dilation,) * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  return x.reshape(*x.shape[:3], problem.heads, problem.depth, -1)
