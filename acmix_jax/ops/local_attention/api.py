"""Attention of each pixel over the window around it, reflected at borders."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from acmix_jax.ops import implementations, windows
from acmix_jax.ops.local_attention import (
  cpu,
  geometry,
  pallas_gpu,
  pallas_tpu,
  patches,
  tiles,
)

_cpu, _tiles, _patches = (
  geometry.with_positions(module.attend) for module in (cpu, tiles, patches)
)

_NAME = 'local_attention'

# In order of preference; those after the first `tiles` are asked for by name.
IMPLEMENTATIONS = (
  # A fused kernel whose logits stay on chip.
  implementations.Implementation(
    'pallas', ('tpu',), pallas_tpu.why_not, pallas_tpu.attend
  ),
  # On one H200, for 64 images of 56x56x64 in bfloat16 and their gradients: 1.3
  # ms with positions; tiles took 8.1 without them and patches 65.
  implementations.Implementation(
    'pallas', ('cuda',), pallas_gpu.why_not, pallas_gpu.attend
  ),
  # A fused kernel in C++, once `acmix_jax.cpu_kernels` are enabled.
  implementations.Implementation('cpu_kernel', ('cpu',), cpu.why_slower, _cpu),
  # A square of queries shares the rectangle of keys that its windows cover; one
  # tile after the other, so that only one is in memory.
  implementations.Implementation(
    'tiles', implementations.PLATFORMS, implementations.always, _tiles
  ),
  implementations.Implementation('cpu_kernel', ('cpu',), cpu.why_not, _cpu),
  # Slow, for tests.
  implementations.Implementation(
    'pallas', ('cpu', 'rocm'), pallas_tpu.why_not, pallas_tpu.interpret
  ),
  # A copy of the window of each query: k*k times the memory of k and v.
  implementations.Implementation(
    'patches', implementations.PLATFORMS, implementations.always, _patches
  ),
)


def local_attention(
  q: Float[Array, 'b h w n d'],
  k: Float[Array, 'b h w n d'],
  v: Float[Array, 'b h w n d'],
  slopes: Float[Array, '2 d'] | None = None,
  *,
  kernel_size: int = 7,
  strides: int = 1,
  dilation: int = 1,
  implementation: str = 'auto',
) -> Float[Array, 'b ho wo n d']:
  """Softmax attention over a window of each pixel (paper eq. 1, 2).

    logits = d**-0.5 * q . (k + slopes . (query's pixel - key's pixel))
    out = softmax(logits over the kernel_size**2 keys, in float32) . v

  Keys, values and positions beyond the border are those of the mirrored pixel.
  Positions are in float32, whatever the dtype, for they grow with the map.

  Source: LeapLabTHU/ACmix ResNet/test_bottleneck.py. Here maps are NHWC and of
  any float dtype. Odd maps at stride 2 give ceil(h / 2) rows; the source fails
  for them. The dilation spaces the keys; the source ignores it in the window
  and fails.

  Args:
    q: Queries, not scaled; every `strides`-th pixel is used.
    k: Keys.
    v: Values.
    slopes: Change of the encoding of a pixel from a row to the next, and from
      a column to the next; shared by images and heads.
    kernel_size: Odd side of the window in keys.
    strides: Pixels between queries.
    dilation: Pixels between neighbouring keys of a window.
    implementation: 'auto', or a name of `IMPLEMENTATIONS`; all compute the
      same numbers up to rounding.

  Returns:
    Sums of values in the dtype of v.

  Raises:
    ValueError: Shapes disagree, the window is not centred, the map is too
      small to reflect, or the implementation is unknown or cannot serve.
  """
  _check_shapes(q, k, v, slopes)
  check_window(*k.shape[1:3], kernel_size, strides, dilation)
  # q . position[query] is the same for all keys of a window, so it leaves the
  # softmax unchanged: only the key's side of the term is needed.
  if slopes is None:
    slopes = jnp.zeros((2, q.shape[4]))
  slopes = slopes.astype(jnp.float32)
  q = q[:, ::strides, ::strides]
  problem = geometry.describe(q, k, v, kernel_size, strides, dilation)
  return implementations.run(
    IMPLEMENTATIONS, _NAME, implementation, problem, q, k, v, slopes
  )


def _check_shapes(q: Any, k: Any, v: Any, slopes: Any) -> None:
  """Raises the ValueError of shapes that disagree."""
  if q.ndim != 5 or not q.shape == k.shape == v.shape:
    raise ValueError(
      f'{_NAME}: q {q.shape}, k {k.shape}, v {v.shape}; three equal shapes '
      '[b, h, w, n, d] are needed.'
    )
  depth = q.shape[4]
  if slopes is not None and slopes.shape != (2, depth):
    raise ValueError(f'{_NAME}: slopes {slopes.shape}; {(2, depth)} is needed.')


def check_window(
  height: int, width: int, kernel_size: int, strides: int, dilation: int
) -> None:
  """Raises the ValueError of a window that is not centred or not reflected."""
  windows.check_window(_NAME, kernel_size, strides, dilation)
  windows.check_reflection(_NAME, height, width, kernel_size, dilation)
