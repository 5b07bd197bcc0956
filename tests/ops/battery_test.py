"""Every implementation of both aggregations against the reference."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.cpu_kernels import library
from acmix_jax.ops import local_attention, loops, reference, shift_convolution

# Rounding error of a sum grows with its terms; these are for inputs near 1.
_TOLERANCE = {'float32': 2e-6, 'bfloat16': 3e-2, 'float16': 4e-3}


class Case(NamedTuple):
  """Sizes of one problem; `terms` are those of the longest sum."""

  h: int
  w: int
  kernel: int = 7
  heads: int = 2
  strides: int = 1
  dilation: int = 1
  dtype: str = 'float32'
  depth: int = 4

  @property
  def options(self):
    return dict(strides=self.strides, dilation=self.dilation)


CASES = [
  Case(8, 8),
  Case(4, 15, heads=1, kernel=5),
  Case(9, 7, strides=2),
  Case(8, 14, strides=2, kernel=3, heads=4),
  Case(7, 8, strides=3, kernel=5),
  Case(9, 11, dilation=2, kernel=5),
  Case(9, 8, dilation=2, kernel=3, strides=2),
  Case(3, 2, kernel=3, depth=8),
  Case(5, 6, kernel=3, depth=6),
  Case(2, 3, kernel=1),
  Case(17, 19, kernel=3),
  Case(9, 8, kernel=5, dtype='bfloat16'),
  Case(9, 8, kernel=3, dtype='float16', strides=2),
]


def normal(seed, shape, dtype='float32'):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, dtype)


def assert_same(run, exact_run, inputs, dtype, terms):
  """Compares outputs and the gradients of every input."""
  out, pullback = jax.vjp(run, *inputs)
  assert out.dtype == dtype
  exact = [jnp.asarray(x, jnp.float32) for x in inputs]
  want, want_pullback = jax.vjp(exact_run, *exact)
  cotangent = normal(9, want.shape)
  results = [out, *pullback(cotangent.astype(dtype))]
  for got, expected in zip(
    results, [want, *want_pullback(cotangent)], strict=True
  ):
    atol = _TOLERANCE[dtype] * terms**0.5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(
      np.asarray(got, np.float32), expected, rtol=0, atol=atol
    )


def skip_what_is_not_served(name, case):
  if name == 'cpu_kernel' and case.dtype != 'float32':
    pytest.skip('The kernels for CPU are of float32.')
  if name == 'cpu_kernel' and library.missing():
    pytest.skip(library.missing())


@pytest.mark.parametrize('case', CASES, ids=str)
# Those of TPU and GPU have a battery of their own; interpreted, they are slow.
@pytest.mark.parametrize('name', ['patches', 'tiles', 'cpu_kernel'])
def test_local_attention_equals_the_reference(name, case):
  skip_what_is_not_served(name, case)
  shape = (2, case.h, case.w, case.heads, case.depth)
  inputs = [normal(i, shape, case.dtype) for i in range(3)]
  inputs.append(normal(3, (case.h, case.w, case.depth), case.dtype))
  options = dict(kernel_size=case.kernel, **case.options)
  assert_same(
    jax.jit(
      functools.partial(
        local_attention.local_attention, implementation=name, **options
      )
    ),
    functools.partial(reference.local_attention, **options),
    inputs,
    case.dtype,
    terms=case.kernel**2 + case.depth,
  )


@pytest.mark.parametrize('case', CASES[1:], ids=str)
@pytest.mark.parametrize('name', shift_convolution.IMPLEMENTATIONS)
def test_shift_convolution_equals_the_reference(name, case):
  skip_what_is_not_served(name, case)
  if name == 'cpu_kernel':
    case = case._replace(depth=library.LANES)
  taps, m = min(9, case.kernel**2), 3 * case.heads
  size = 2, case.h, case.w
  coarse = 2, max(1, case.h // 2), max(1, case.w // 2)
  inputs = [
    normal(0, (*size, m, case.depth), case.dtype),
    normal(1, (*coarse, case.heads, case.depth), case.dtype),
    normal(2, (m + case.heads, taps), case.dtype),
    normal(
      3, (case.kernel, case.kernel, taps, case.depth * case.heads), case.dtype
    ),
    normal(4, (taps,), case.dtype),
  ]
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
  assert_same(jax.jit(run), exact_run, inputs, case.dtype, terms)


def test_the_reference_is_the_equation():
  """One pixel of eq. 1 and 2 by hand, at a corner, where windows mirror."""
  q, k, v = (np.asarray(normal(i, (1, 5, 6, 1, 3))) for i in range(3))
  position = np.asarray(normal(3, (5, 6, 3)))
  out = reference.local_attention(q, k, v, position, kernel_size=3)
  query, here = q[0, 4, 0, 0], position[4, 0]
  neighbours = [(y, x) for y in (3, 4, 3) for x in (1, 0, 1)]
  logits = [
    query @ (k[0, y, x, 0] + here - position[y, x]) / np.sqrt(3)
    for y, x in neighbours
  ]
  weights = np.exp(logits) / np.exp(logits).sum()
  want = sum(
    weight * v[0, y, x, 0]
    for weight, (y, x) in zip(weights, neighbours, strict=True)
  )
  np.testing.assert_allclose(out[0, 4, 0, 0], want, rtol=1e-5)


def test_shift_kernel_moves_each_map_to_its_own_neighbour():
  maps = normal(0, (1, 5, 5, 9, 2))
  out = reference.shift_convolution(
    maps, jnp.eye(9), shift_convolution.shift_kernel(3, 2)
  )
  padded = np.pad(maps[0], ((1, 1), (1, 1), (0, 0), (0, 0)))
  want = sum(
    padded[i : i + 5, j : j + 5, 3 * i + j] for i in range(3) for j in range(3)
  )
  np.testing.assert_allclose(out[0], want, rtol=1e-5, atol=1e-6)


def test_loops_start_with_zeros_whatever_the_input_is():
  x = jnp.asarray([1.0, -jnp.inf, jnp.inf, jnp.nan], jnp.bfloat16)
  zeros = loops.zeros(x)
  assert zeros.dtype == jnp.float32
  np.testing.assert_array_equal(zeros, np.zeros(4))


def test_the_values_keep_their_precision_beside_queries_of_less():
  shape = (1, 9, 8, 2, 4)
  q, k = (normal(i, shape, 'bfloat16') for i in range(2))
  v = normal(2, shape)
  tiles, patches = (
    local_attention.local_attention(q, k, v, implementation=name)
    for name in ('tiles', 'patches')
  )
  assert tiles.dtype == v.dtype
  np.testing.assert_allclose(tiles, patches, rtol=1e-5, atol=1e-6)


def test_large_logits_neither_overflow_nor_vanish():
  q = jnp.full((1, 8, 8, 1, 4), 60.0, jnp.float16)
  v = normal(0, (1, 8, 8, 1, 4), jnp.float16)
  for name in ('patches', 'tiles'):
    out = local_attention.local_attention(q, q, v, implementation=name)
    want = reference.local_attention(
      jnp.zeros_like(q), q, v.astype(jnp.float32)
    )
    np.testing.assert_allclose(out, want, atol=2e-3)


@pytest.mark.parametrize(
  ('shape', 'options', 'message'),
  [
    ((1, 3, 9, 1, 4), {}, 'smallest side that works is 4'),
    ((1, 6, 9, 1, 4), {'dilation': 2}, 'smallest side that works is 7'),
    ((1, 8, 8, 1, 4), {'kernel_size': 4}, 'nearest that works: 5'),
    ((1, 8, 8, 1, 4), {'strides': 0}, 'strides=0'),
    ((8, 8, 1, 4), {}, r'\[b, h, w, n, d\]'),
    (
      (1, 8, 8, 1, 4),
      {'implementation': 'tile'},
      'known: auto, patches, tiles, pallas, cpu_kernel',
    ),
  ],
)
def test_local_attention_names_what_is_wrong(shape, options, message):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  run = functools.partial(local_attention.local_attention, **options)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(run, x, x, x)


@pytest.mark.parametrize(
  ('fc_kernel', 'depthwise_kernel', 'message'),
  [
    ((5, 9), (3, 3, 9, 8), 'm = 6'),
    ((6, 9), (3, 3, 8, 8), 't = 9'),
    ((6, 9), (3, 3, 9, 6), 'd = 4'),
    ((6, 4), (2, 2, 4, 8), 'nearest that works: 3'),
  ],
)
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
