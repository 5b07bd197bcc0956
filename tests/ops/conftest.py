"""What tests of operators share."""

import functools

import pytest

from acmix_jax import cpu_kernels

_load = functools.cache(cpu_kernels._load)


@pytest.fixture
def kernels(monkeypatch):
  """The kernels for CPU are enabled during the test, where they can be."""
  monkeypatch.setattr(cpu_kernels, '_reason', _load())


@pytest.fixture
def needs_kernels(kernels):
  """Skips the test where there are no kernels for CPU."""
  if reason := cpu_kernels.why_not():
    pytest.skip(reason)
