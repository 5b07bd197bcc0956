"""The kernels of window attention for TPU, against the plain form."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import pytest

from acmix_jax.ops import implementations, shifted_windows
from acmix_jax.ops.shifted_windows import geometry
from tests.ops import battery


@pytest.mark.parametrize(
  ('padded', 'size', 'shift', 'heads', 'depth', 'window_size', 'dtype'),
  [
    ((6, 9), (6, 9), 0, 2, 8, 3, 'float32'),
    # Rolled and padded; more channels than a register has lanes.
    ((14, 21), (12, 20), 3, 5, 32, 7, 'float32'),
    ((8, 16), (8, 16), 4, 3, 16, 8, 'float32'),
    ((6, 6), (5, 6), 1, 2, 8, 3, 'bfloat16'),
  ],
)
def test_the_kernel_equals_the_plain_form(
  padded, size, shift, heads, depth, window_size, dtype
):
  maps = battery.normal(0, (3, *padded, 3 * heads, depth), dtype)
  bias = battery.normal(1, (heads, window_size**2, window_size**2))
  run = functools.partial(
    shifted_windows.window_attention,
    window_size=window_size,
    size=size,
    shift=shift,
  )
  battery.assert_same(
    jax.jit(functools.partial(run, implementation='pallas')),
    functools.partial(run, implementation='plain'),
    (maps, bias),
    dtype,
    terms=9 * window_size**2,
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('padded', 'heads'), [((203, 336), 3), ((14, 21), 24)])
def test_the_kernel_lowers_for_tpu(padded, heads, dtype):
  maps = jax.ShapeDtypeStruct((2, *padded, 3 * heads, 32), dtype)
  bias = jax.ShapeDtypeStruct((heads, 49, 49), jnp.float32)

  def total(*inputs):
    out = shifted_windows.window_attention(*inputs, window_size=7, shift=3)
    return out.astype(jnp.float32).sum()

  gradient = jax.jit(jax.value_and_grad(total, (0, 1)))
  lowered = gradient.trace(maps, bias).lower(lowering_platforms=('tpu',))
  assert lowered.as_text().count('tpu_custom_call') == 2


def test_any_number_of_images_is_left_to_the_plain_form():
  bias = jax.ShapeDtypeStruct((1, 49, 49), jnp.float32)
  chosen = []
  for images in (2, *jax.export.symbolic_shape('b')):
    maps = jax.ShapeDtypeStruct((images, 14, 7, 3, 8), jnp.float32)
    problem = geometry.describe(maps, bias, 7, (14, 7), 0)
    row = implementations.choose(
      shifted_windows.IMPLEMENTATIONS, 'auto', problem, 'tpu'
    )
    chosen.append(row.name)
  assert chosen == ['pallas', 'plain']


def test_what_the_kernel_cannot_serve_is_said():
  maps = jnp.zeros((1, 7, 7, 3, 24))
  bias = jnp.zeros((1, 49, 49))
  with pytest.raises(ValueError, match='divisor of 128 channels, not 24'):
    shifted_windows.window_attention(
      maps, bias, window_size=7, implementation='pallas'
    )
