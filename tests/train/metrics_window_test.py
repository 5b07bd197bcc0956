"""The window of metrics between two log lines."""

import jax.numpy as jnp
import pytest

from acmix_jax.train import metrics_window as window_lib


def step(loss):
  return {'loss': jnp.float32(loss), 'grad_norm': jnp.float32(1)}


def test_what_was_read_stays_as_it_was():
  """A checkpoint writes it in the background, while the training goes on."""
  window = window_lib.Window(0)
  window.add(step(1.5))
  saved = window.read()
  window.add(step(2.5))
  assert window.read()['loss'] == [1.5, 2.5]
  assert saved == {'loss': [1.5], 'grad_norm': [1.0]}


def test_goes_on_from_what_a_checkpoint_held():
  window = window_lib.Window(1, {'loss': [1.5], 'grad_norm': [1.0]})
  window.add(step(2.5))
  assert window.flush() == {'loss': 2.0, 'grad_norm': 1.0}
  assert window.read() == {}


def test_names_the_step_that_is_not_finite():
  window = window_lib.Window(7)
  window.add(step(1.0), ['a.jpg'])
  window.add(step(float('nan')), ['b.jpg'])
  window.add(step(2.0), ['c.jpg'])
  with pytest.raises(
    window_lib.NonFiniteError, match='loss is nan at step 9'
  ) as caught:
    window.read()
  assert caught.value.names == ['b.jpg']
