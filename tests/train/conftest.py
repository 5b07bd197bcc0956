"""The tiny model, and a training of it that was never stopped."""

import chex
import pytest

from acmix_jax.train import loop
from acmix_jax.train import state as state_lib
from tests.train import tiny_run


@pytest.fixture
def tiny_model(monkeypatch):
  """`models.create_model` makes the tiny model."""
  tiny_run.use_tiny(monkeypatch)


@pytest.fixture(scope='session')
def straight(tmp_path_factory):
  """A training that was never stopped, on one device."""
  workdir = tmp_path_factory.mktemp('straight')
  make_train_step = state_lib.make_train_step
  with pytest.MonkeyPatch.context() as patch:
    tiny_run.use_tiny(patch)
    patch.setattr(
      state_lib,
      'make_train_step',
      lambda *args, **options: chex.assert_max_traces(
        make_train_step(*args, **options), 1
      ),
    )
    loop.run(tiny_run.config(), str(workdir))
  return workdir
