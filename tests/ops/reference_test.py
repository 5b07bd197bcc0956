"""The reference, by hand."""

import jax.numpy as jnp
import numpy as np

from acmix_jax.ops import reference, shift_convolution
from tests.ops import battery


def test_the_reference_is_the_equation():
  """One pixel of eq. 1 and 2 by hand, at a corner, where windows mirror."""
  arrays = [battery.normal(i, (1, 5, 6, 1, 3)) for i in range(3)]
  arrays.append(battery.normal(3, (5, 6, 3)))
  out = reference.local_attention(*arrays, kernel_size=3)
  q, k, v, position = map(np.asarray, arrays)
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
  maps = battery.normal(0, (1, 5, 5, 9, 2))
  out = reference.shift_convolution(
    maps, jnp.eye(9), shift_convolution.shift_kernel(3, 2)
  )
  padded = np.pad(maps[0], ((1, 1), (1, 1), (0, 0), (0, 0)))
  want = sum(
    padded[i : i + 5, j : j + 5, 3 * i + j] for i in range(3) for j in range(3)
  )
  np.testing.assert_allclose(out[0], want, rtol=1e-5, atol=1e-6)
