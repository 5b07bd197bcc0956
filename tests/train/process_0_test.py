"""What process 0 tells the others, here with one process alone."""

import numpy as np
import pytest

from acmix_jax.train import processes


@pytest.mark.parametrize('value', [0.1, float('nan'), float('inf'), 3])
def test_metrics_are_passed_on_exactly(value):
  (passed,) = processes.from_process_0({'x': value}).values()
  np.testing.assert_equal(passed, value)
  assert type(passed) is type(value)


def test_values_of_all_processes_are_passed_on_exactly():
  value = ['image \u00fc.jpg', 0.1]
  assert processes.from_all(value) == [value]


def test_an_error_of_process_0_stays_what_it_is():
  def fail():
    raise FileNotFoundError('gone')

  with pytest.raises(FileNotFoundError, match='gone'):
    processes.by_process_0(fail)
