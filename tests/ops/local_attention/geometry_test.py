"""Windows that reflect as attention to the pixels of a map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.ops import windows
from acmix_jax.ops.local_attention import geometry


@pytest.mark.parametrize(
  ('size', 'kernel', 'strides', 'dilation'),
  [(4, 7, 1, 1), (9, 7, 2, 1), (8, 3, 1, 2), (7, 5, 3, 3), (3, 1, 1, 1)],
)
def test_log_counts_are_those_of_a_reflected_line(
  size, kernel, strides, dilation
):
  pixels = windows.reflected(size, windows.reach(kernel, dilation))
  queries = np.arange(0, size, strides)
  seen = [pixels[q : q + kernel * dilation : dilation] for q in queries]
  # One key more at each end than the line has.
  wanted = [
    [list(line).count(key) for key in range(-1, size + 1)] for line in seen
  ]
  x = jax.ShapeDtypeStruct((1, size, size, 1, 1), jnp.float32)
  result = geometry.log_counts(
    jnp.asarray(queries)[:, None],
    jnp.arange(-1, size + 1)[None],
    size,
    geometry.describe(x, x, x, kernel, strides, dilation),
  )
  np.testing.assert_allclose(np.exp(result), wanted, rtol=1e-6)
