"""The kernels of an ACmix layer of windows for TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import reference, shifted_windows, window_acmix
from acmix_jax.ops.window_acmix import geometry, pallas_tpu
from tests.ops import battery


def arguments(size, channels, heads, depth, window_size, dtype='float32'):
  """Random arguments of three images."""
  features, tokens = heads * depth, window_size**2
  return [
    battery.normal(0, (3, *size, channels), dtype),
    battery.normal(1, (channels, 3 * features), dtype) / channels**0.5,
    battery.normal(2, (3 * features,), dtype),
    battery.normal(3, (heads, tokens, tokens)),
    battery.normal(4, (features, features), dtype) / features**0.5,
    battery.normal(5, (3, 3, 3 * heads, features), dtype),
    battery.normal(6, (*size, features)),
  ]


def layer(window_size, size, shift, attend_padding):
  """A layer of the reference, and of the attention of `shifted_windows`."""

  def run(x, projection, bias, window_bias, out_kernel, kernel, offset):
    maps = x @ projection + bias[None, None, None]
    maps = maps.reshape(*x.shape[:3], 3 * len(window_bias), -1)
    attended = shifted_windows.window_attention(
      *(maps, window_bias),
      window_size=window_size,
      size=x.shape[1:3] if attend_padding else size,
      shift=shift,
      implementation='plain',
    )
    rows, columns = (
      (np.arange(padded) + shift) % padded < side
      for padded, side in zip(x.shape[1:3], size, strict=True)
    )
    valid = (rows[:, None] & columns).astype(np.float32)
    identity = jnp.eye(maps.shape[3])
    convolved = reference.shift_convolution(
      maps * valid[None, :, :, None, None], identity, kernel
    )
    attended = attended.reshape(convolved.shape)
    return attended @ out_kernel + convolved + offset[None]

  return run


@pytest.mark.parametrize('implementation', ['pallas', 'separate'])
@pytest.mark.parametrize(
  ('padded', 'size', 'channels', 'heads', 'depth', 'shift', 'attend_padding'),
  [
    ((6, 9), (6, 9), 10, 2, 8, 0, False),
    ((7, 14), (7, 14), 24, 5, 32, 3, False),
    ((8, 4), (7, 2), 48, 3, 16, 2, False),
    ((6, 9), (6, 7), 8, 1, 8, 1, True),
  ],
)
def test_a_layer_equals_the_reference(
  padded, size, channels, heads, depth, shift, attend_padding, implementation
):
  window_size = next(side for side in (7, 4, 3) if padded[0] % side == 0)
  window = {'size': size, 'shift': shift, 'attend_padding': attend_padding}
  run = functools.partial(
    window_acmix.window_acmix,
    window_size=window_size,
    implementation=implementation,
    **window,
  )
  inputs = arguments(padded, channels, heads, depth, window_size)
  battery.assert_same(
    jax.jit(run),
    layer(window_size, **window),
    tuple(inputs),
    'float32',
    terms=27 * heads * window_size**2,
  )


def test_forward_derivatives_leave_out_the_padding():
  inputs = arguments((3, 6), 4, 1, 8, 3)
  tangents = [battery.normal(10 + i, x.shape) for i, x in enumerate(inputs)]
  results = []
  for implementation in ('pallas', 'separate'):
    run = functools.partial(
      window_acmix.window_acmix,
      window_size=3,
      size=(3, 4),
      shift=1,
      implementation=implementation,
    )
    results.append(jax.jit(functools.partial(jax.jvp, run))(inputs, tangents))
  for got, want in zip(*results, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_maps_of_other_sizes_are_refused():
  inputs = arguments((3, 5), 4, 1, 8, 3)
  with pytest.raises(ValueError, match='3x5 map is not made of whole windows'):
    window_acmix.window_acmix(*inputs, window_size=3)


@pytest.mark.parametrize(
  ('size', 'heads', 'dtype'),
  [((56, 56), 3, 'bfloat16'), ((28, 28), 6, 'float32')],
)
def test_a_layer_lowers_for_tpu_as_one(size, heads, dtype):
  def total(*inputs):
    out = window_acmix.window_acmix(*inputs, window_size=7, shift=3)
    return out.astype(jnp.float32).sum()

  inputs = jax.eval_shape(
    functools.partial(arguments, size, 32 * heads, heads, 32, 7, dtype)
  )
  gradient = jax.jit(jax.value_and_grad(total, range(7)))
  lowered = gradient.trace(*inputs).lower(lowering_platforms=('tpu',))
  assert lowered.as_text().count('tpu_custom_call') == 2


def test_large_maps_are_left_to_two_operators():
  shapes = functools.partial(arguments, (203, 336), 96, 3, 32, 7)
  inputs = jax.eval_shape(shapes)
  problem = geometry.describe(
    *(inputs[0], inputs[3], inputs[5], 7),
    size=(200, 336),
    shift=3,
    attend_padding=False,
  )
  assert 'MiB on chip' in pallas_tpu.why_not(problem)
