"""The choice between implementations of an operator."""

import jax
import jax.numpy as jnp
import pytest

from acmix_jax.ops import implementations


def even(problem):
  return 'the problem is odd.' if problem % 2 else None


def add(amount):
  return lambda problem, x: x + amount


ON_CPU, ON_TPU, LATE, SLOW = add(1), add(2), add(3), add(4)
TABLE = (
  implementations.Implementation('kernel', ('cpu',), even, ON_CPU),
  implementations.Implementation('kernel', ('tpu',), even, ON_TPU),
  implementations.Implementation(
    'plain', implementations.PLATFORMS, implementations.always, LATE
  ),
  implementations.Implementation(
    'slow', implementations.PLATFORMS, implementations.always, SLOW
  ),
)


def run(name, problem):
  x = jnp.zeros(())
  return float(implementations.run(TABLE, 'operation', name, problem, x))


def test_names_are_those_of_the_table():
  assert implementations.names(TABLE) == ['auto', 'kernel', 'plain', 'slow']


@pytest.mark.parametrize(
  ('name', 'problem', 'amount'),
  [('auto', 2, 1), ('auto', 3, 3), ('slow', 2, 4), ('kernel', 2, 1)],
)
def test_the_first_that_serves_runs(name, problem, amount):
  assert run(name, problem) == amount


@pytest.mark.parametrize(('name', 'platforms'), [('auto', 4), ('slow', 0)])
def test_platforms_are_told_apart_only_where_they_differ(name, platforms):
  def call(x):
    return implementations.run(TABLE, 'operation', name, 2, x)

  jaxpr = str(jax.make_jaxpr(call)(jnp.zeros(())))
  assert jaxpr.count('platform_index') == (1 if platforms else 0)


def test_a_reason_is_given_with_the_names_that_serve():
  with pytest.raises(ValueError) as error:
    run('kernel', 3)
  assert str(error.value) == (
    "operation: 'kernel' cannot serve: the problem is odd. "
    "These can: 'auto', 'plain', 'slow'."
  )


def test_an_unknown_name_gets_the_nearest():
  with pytest.raises(ValueError, match="'plane' is unknown.*'plain'"):
    run('plane', 2)
