"""What the batteries of the operators share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Rounding error of a sum grows with its terms; these are for inputs near 1.
_TOLERANCE = {'float32': 2e-6, 'bfloat16': 3e-2, 'float16': 4e-3}


class Case(NamedTuple):
  """Sizes of one problem."""

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


# Geometries that other cases come near to.
_SLOW = (1, 3, 5, 8, 10)


def cases(first: int = 0) -> list:
  """Parameters of a test, some of them marked as slow."""
  return [
    pytest.param(case, marks=[pytest.mark.slow] * (i in _SLOW), id=str(case))
    for i, case in enumerate(CASES)
    if i >= first
  ]


def normal(seed, shape, dtype='float32'):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, dtype)


def assert_same(run, exact_run, inputs, dtype, terms):
  """Compares outputs and the gradients of every input.

  Args:
    run: Function under test.
    exact_run: Reference, in float32.
    inputs: Arguments of both.
    dtype: Dtype of the output.
    terms: Terms of the longest sum.
  """
  out, pullback = jax.vjp(run, *inputs)
  assert out.dtype == dtype
  exact = [jnp.asarray(x, jnp.float32) for x in inputs]
  want, want_pullback = jax.vjp(jax.jit(exact_run), *exact)
  dout = normal(9, want.shape)
  results = [out, *pullback(dout.astype(dtype))]
  for got, expected in zip(results, [want, *want_pullback(dout)], strict=True):
    atol = _TOLERANCE[dtype] * terms**0.5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(
      np.asarray(got, np.float32), expected, rtol=0, atol=atol
    )


def skip_unless_served(table, name, problem):
  reasons = {row.name: row.why_not(problem) for row in table}
  if reasons.get(name):
    pytest.skip(reasons[name])
