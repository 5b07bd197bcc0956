"""Local attention as a fused kernel for CPU with its own gradient.

q, k and v alone are kept for the gradient. Each thread holds the logits of one
row of queries, and the keys and values of an image for a few heads.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax import cpu_kernels
from acmix_jax.ops import derivatives, sharding
from acmix_jax.ops.local_attention import geometry, tiles


def why_not(problem: geometry.Problem) -> str | None:
  """Reason why the kernel cannot serve, or None."""
  if any(dtype != jnp.float32 for dtype in problem.dtypes):
    names = ', '.join(map(str, problem.dtypes))
    return f'the kernel for CPU takes float32, not q, k, v of {names}.'
  if problem.varying:
    return f'of the kernel for CPU, {sharding.WHY_NOT_VARYING}'
  return cpu_kernels.why_not()


def why_slower(problem: geometry.Problem) -> str | None:
  """`why_not`, or where tiles are faster.

  Tiles see a map no larger than the window in a few dense products: the kernel
  took 1.3 times as long on 8 images of 7x7x512 (jax 0.10.2).
  """
  if min(problem.keys) <= problem.extent:
    return 'the map is no larger than the window.'
  return why_not(problem)


def attend(
  problem: geometry.Problem,
  q: Float[Array, 'b ho wo n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
) -> Float[Array, 'b ho wo n d']:
  """Attention of each query over the window around it, reflected at borders.

  Its first gradient is a kernel, other derivatives are those of tiles. Several
  devices share the images if `jax.set_mesh` names their mesh; each computes all
  of them otherwise.

  Args:
    problem: Sizes of the arrays and the window.
    q: Queries.
    k: Keys, scaled.
    v: Values.

  Returns:
    Sums of values in the dtype of v.
  """
  return _attend(problem, q, k, v)


def _forward(problem, q, k, v):
  def call(q, k, v):
    return _call('LocalAttention', problem, q, q, k, v)

  return sharding.split_images(call, q, k, v), ()


def _backward(problem, inputs, _, dout):
  def call(q, k, v, dout):
    return _call('LocalAttentionGradient', problem, (q, k, v), q, k, v, dout)

  return sharding.split_images(call, *inputs, dout)


_attend = derivatives.define(_forward, _backward, tiles.general)


def _call(name, problem, like, *arrays):
  """Calls a kernel for results like these arrays."""
  return cpu_kernels.call(
    name,
    like,
    *arrays,
    kernel_size=problem.kernel_size,
    strides=problem.strides,
    dilation=problem.dilation,
  )
