"""Derivatives of every kind through every implementation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax import cpu_kernels
from acmix_jax.ops import implementations, local_attention, shift_convolution
from tests.ops import battery


def attend(name):
  return functools.partial(
    local_attention.local_attention,
    kernel_size=3,
    strides=2,
    implementation=name,
  )


def convolve(name):
  def run(maps, *weights):
    return shift_convolution.shift_convolution(
      [maps[..., :2, :], maps[..., 2:, :]], *weights, implementation=name
    )

  return run


# Function of an implementation's name, shapes of the inputs, and the
# implementation whose derivatives are all jax's own.
OPERATORS = {
  'attention': (attend, [(1, 3, 4, 1, 4)] * 3, 'patches'),
  'convolution': (
    convolve,
    [(1, 3, 4, 3, 16), (3, 9), (3, 3, 9, 16)],
    'grouped',
  ),
}
CASES = [
  (operator, name)
  for operator, table in (
    ('attention', local_attention.IMPLEMENTATIONS),
    ('convolution', shift_convolution.IMPLEMENTATIONS),
  )
  for name in implementations.names(table)
  if name not in ('auto', 'patches', 'grouped', 'shifts')
]


def derivatives(function, inputs, directions, twice_forward=False):
  """Of outputs and of the sum of their squares, up to the second order."""
  numbers = tuple(range(len(inputs)))

  def loss(*inputs):
    return jnp.sum(function(*inputs) ** 2)

  def slope(*inputs):
    """Derivative of the loss in the directions, by its gradient."""
    gradients = jax.grad(loss, numbers)(*inputs)
    return sum(map(jnp.vdot, gradients, directions))

  def forward(*inputs):
    return jax.jvp(function, inputs, directions)[1]

  def forward_loss(*inputs):
    return jnp.sum(forward(*inputs) ** 2)

  results = {
    'forward': forward(*inputs),
    'forward over reverse': jax.jvp(slope, inputs, directions)[1],
    'reverse over reverse': jax.grad(slope, numbers)(*inputs),
  }
  if twice_forward:
    results['forward over forward'] = jax.jvp(forward, inputs, directions)[1]
    results['reverse over forward'] = jax.grad(forward_loss, numbers)(*inputs)
  return results


@functools.cache
def problem(operator):
  make, shapes, plain = OPERATORS[operator]
  inputs, directions = (
    tuple(battery.normal(seed + i, x) for i, x in enumerate(shapes))
    for seed in (0, 10)
  )
  compute = jax.jit(
    functools.partial(derivatives, make(plain)), static_argnums=2
  )
  return inputs, directions, compute(inputs, directions, True)


@pytest.mark.parametrize(('operator', 'name'), CASES)
@pytest.mark.usefixtures('kernels')
def test_derivatives_equal_those_of_plain_operations(operator, name):
  if name == 'cpu_kernel' and (reason := cpu_kernels.why_not()):
    pytest.skip(reason)
  inputs, directions, wanted = problem(operator)
  run = OPERATORS[operator][0](name)
  compute = jax.jit(functools.partial(derivatives, run), static_argnums=2)
  results = compute(inputs, directions, name in ('tiles', 'channels'))
  for kind, result in results.items():
    want = wanted[kind]
    scale = max(np.abs(x).max() for x in jax.tree.leaves(want))
    chex.assert_trees_all_close(
      result, want, rtol=0, atol=2e-5 * scale, custom_message=kind
    )


@pytest.mark.parametrize('operator', OPERATORS)
def test_derivatives_of_batches_are_those_of_each(operator):
  make, shapes, _ = OPERATORS[operator]
  run = make('auto')
  inputs, directions = (
    [battery.normal(seed + i, (3, *x)) for i, x in enumerate(shapes)]
    for seed in (0, 10)
  )
  # The last input and its direction are shared.
  inputs[-1], directions[-1] = inputs[-1][0], directions[-1][0]
  axes = [0] * (len(inputs) - 1) + [None]

  def compute(inputs, directions):
    out, tangent = jax.jvp(run, inputs, directions)
    _, pullback = jax.vjp(run, *inputs)
    return tangent, pullback(out)

  results = jax.jit(jax.vmap(compute, (axes, axes)))(inputs, directions)
  for i in range(3):
    own = [
      [x if axis is None else x[i] for x, axis in zip(xs, axes, strict=True)]
      for xs in (inputs, directions)
    ]
    chex.assert_trees_all_close(
      jax.tree.map(lambda x, i=i: x[i], results),
      jax.jit(compute)(*own),
      atol=1e-4,
    )
