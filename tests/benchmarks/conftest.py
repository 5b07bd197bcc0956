"""What tests of benchmarks share."""

import pytest

from acmix_jax import cpu_kernels


@pytest.fixture(autouse=True)
def _kernels_of_this_test_alone(monkeypatch):
  """What a benchmark enables is not enabled in the tests that follow."""
  monkeypatch.setattr(cpu_kernels, '_reason', cpu_kernels._reason)
  cpu_kernels.enable.cache_clear()
  yield
  cpu_kernels.enable.cache_clear()
