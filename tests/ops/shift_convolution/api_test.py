"""Every implementation of the shift convolution against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax import cpu_kernels
from acmix_jax.ops import implementations, reference, shift_convolution
from acmix_jax.ops.shift_convolution import geometry
from tests.ops import battery

_, *NAMES = implementations.names(shift_convolution.IMPLEMENTATIONS)


@pytest.mark.parametrize('case', battery.cases(first=1))
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.usefixtures('kernels')
def test_implementations_equal_the_reference(name, case):
  if name == 'cpu_kernel':
    case = case._replace(depth=cpu_kernels.LANES)
  taps, m = min(9, case.kernel**2), 3 * case.heads
  size = 2, case.h, case.w
  coarse = 2, max(1, case.h // 2), max(1, case.w // 2)
  inputs = [
    battery.normal(0, (*size, m, case.depth), case.dtype),
    battery.normal(1, (*coarse, case.heads, case.depth), case.dtype),
    battery.normal(2, (m + case.heads, taps), case.dtype),
    battery.normal(
      3, (case.kernel, case.kernel, taps, case.depth * case.heads), case.dtype
    ),
    battery.normal(4, (taps,), case.dtype),
  ]
  problem = geometry.describe(
    inputs[:1], inputs[3], case.strides, case.dilation
  )
  battery.skip_unless_served(shift_convolution.IMPLEMENTATIONS, name, problem)
  valid = np.arange(case.h * case.w).reshape(size[1:]) % 3 != 1

  def run(maps, coarse, fc_kernel, depthwise_kernel, fc_bias):
    parts = jnp.split(maps, [case.heads], axis=3)
    return shift_convolution.shift_convolution(
      *([*parts, coarse], fc_kernel, depthwise_kernel, fc_bias),
      valid=valid,
      implementation=name,
      **case.options,
    )

  def exact_run(maps, coarse, fc_kernel, depthwise_kernel, fc_bias):
    rows, columns = (
      (np.arange(size) // max(1, size // few)).clip(max=few - 1)
      for size, few in zip(maps.shape[1:3], coarse.shape[1:3], strict=True)
    )
    repeated = coarse[:, rows[:, None], columns[None]]
    fc_bias = fc_bias.reshape(1, 1, 1, -1, 1)
    return reference.shift_convolution(
      jnp.concatenate([maps, repeated], axis=3),
      fc_kernel,
      depthwise_kernel,
      fc_bias * valid[None, :, :, None, None],
      **case.options,
    )

  terms = taps * case.kernel**2 * (m + case.heads)
  battery.assert_same(jax.jit(run), exact_run, inputs, case.dtype, terms)


@pytest.mark.parametrize(
  ('fc_kernel', 'depthwise_kernel', 'message'),
  [
    ((5, 9), (3, 3, 9, 8), 'm = 6'),
    ((6, 9), (3, 3, 8, 8), 't = 9'),
    ((6, 9), (3, 3, 9, 6), 'd = 4'),
    ((6, 4), (2, 2, 4, 8), 'nearest that works: 3'),
  ],
)
@pytest.mark.usefixtures('without_shape_checks')
def test_shift_convolution_names_what_is_wrong(
  fc_kernel, depthwise_kernel, message
):
  with pytest.raises(ValueError, match=message):
    shift_convolution.shift_convolution(
      [jnp.zeros((1, 5, 5, 6, 4))],
      jnp.zeros(fc_kernel),
      jnp.zeros(depthwise_kernel),
    )


@pytest.mark.parametrize(
  ('name', 'needed'),
  [
    ('fc_bias', r'\(9,\)'),
    ('valid', r'\(5, 5\)'),
  ],
)
@pytest.mark.usefixtures('without_shape_checks')
def test_shift_convolution_names_the_shape_that_is_needed(name, needed):
  with pytest.raises(ValueError, match=f'{name} .* {needed} is needed'):
    shift_convolution.shift_convolution(
      [jnp.zeros((1, 5, 5, 6, 4))],
      jnp.zeros((6, 9)),
      jnp.zeros((3, 3, 9, 8)),
      **{name: jnp.zeros((5, 9))},
    )


@pytest.mark.parametrize(
  ('grids', 'message'),
  [
    # A finer grid, one beside the first, two coarse ones, a fine one after.
    ([(5, 5), (5, 6)], 'share one grid that is coarser'),
    ([(5, 5), (6, 4)], 'share one grid that is coarser'),
    ([(5, 5), (2, 2), (1, 1)], 'share one grid that is coarser'),
    ([(5, 5), (2, 2), (5, 5)], 'must come first'),
  ],
)
def test_shift_convolution_refuses_grids_it_cannot_repeat(grids, message):
  maps = [jnp.zeros((1, *grid, 1, 4)) for grid in grids]
  with pytest.raises(ValueError, match=message):
    shift_convolution.shift_convolution(
      maps, jnp.zeros((len(maps), 9)), jnp.zeros((3, 3, 9, 8))
    )
