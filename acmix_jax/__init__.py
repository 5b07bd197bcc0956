"""ACmix and convolution-attention hybrids in JAX/Flax."""

import importlib

from acmix_jax import lookup
from acmix_jax.version import __version__

# Modules of the public names. They are imported when a name is first used:
# what needs no jax, such as `acmix-jax --help`, answers at once.
_MODULES = {
  'ACmix': 'nn.acmix',
  'cpu_kernels': 'cpu_kernels',
  'create_model': 'models',
  'from_torch': 'weights',
  'list_heads': 'models',
  'list_models': 'models',
  'load_weights': 'weights',
}

__all__ = ['__version__', *_MODULES]


def __getattr__(name):
  if name not in _MODULES:
    raise AttributeError(lookup.unknown('acmix_jax', name, __all__))
  module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
  return module if name == _MODULES[name] else getattr(module, name)


def __dir__():
  return sorted({*globals(), *_MODULES})
