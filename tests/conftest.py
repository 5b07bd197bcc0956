"""Settings of every test: CPU, eight virtual devices, exact products."""

import os
import pathlib

# Set before the first import of jax. A flag already set is left alone, so that
# every pytest-xdist worker computes the same compilation-cache key.
_FLAGS = {
  '--xla_force_host_platform_device_count': '8',
  # Most of the time goes into compilation, little into running.
  '--xla_backend_optimization_level': '0',
  '--xla_llvm_disable_expensive_passes': 'true',
}
for _flag, _value in _FLAGS.items():
  if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = (
      f'{os.environ.get("XLA_FLAGS", "")} {_flag}={_value}'
    )
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(__file__).parents[1] / '.jax_cache'),
)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Checks annotated shapes at every call. An int may stand for a float. Left out
# is tasks/task.py: to check an object against a protocol is to read all of its
# attributes, and a task's steps_per_epoch reads the data.
_TASKS = pathlib.Path(__file__).parents[1] / 'acmix_jax' / 'tasks'
jaxtyping.install_import_hook(
  [
    'acmix_jax.ops',
    'acmix_jax.nn',
    'acmix_jax.models',
    *(
      f'acmix_jax.tasks.{path.stem}'
      for path in _TASKS.glob('[!_]*.py')
      if path.stem != 'task'
    ),
  ],
  'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))',
)


@pytest.fixture
def without_shape_checks(monkeypatch):
  """Wrong shapes reach the errors of the package, as they do for its users."""
  monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)
