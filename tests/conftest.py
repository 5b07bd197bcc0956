"""Settings of every test: CPU, eight virtual devices, exact products."""

import os
import pathlib

# Set before the first import of jax; an already set flag is left alone so that
# every pytest-xdist worker computes the same compilation-cache key.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '')
    + ' --xla_force_host_platform_device_count=8'
  )
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(pathlib.Path(__file__).parents[1] / '.jax_cache'),
)

import jax  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_numpy_rank_promotion', 'raise')
