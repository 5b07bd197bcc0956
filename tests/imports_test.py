"""Imports point only down the list of layers."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Modules that every layer may import.
BOTTOM = {'lookup', 'version'}
# Configs may import these, which are no recipes of their own.
SHARED_CONFIGS = {
  'ade20k',
  'backbones',
  'coco',
  'common',
  'imagenet',
  'scenes_detection',
}
# A file may import the layers that its own one lists here, and its own.
BELOW = {
  'main': {'tools'},
  '__main__': {'tools'},
  'configs': set(),
  'acmix_jax': {'models', 'nn', 'ops', 'weights', 'cpu_kernels'},
  'tools': {
    *('train', 'tasks', 'metrics', 'models', 'nn', 'ops', 'data', 'weights'),
    'cpu_kernels',
  },
  'train': {'tasks', 'models', 'nn', 'ops', 'data', 'weights'},
  'tasks': {'metrics', 'models', 'nn', 'ops', 'data'},
  'metrics': set(),
  'models': {'nn', 'ops'},
  'nn': {'ops'},
  'ops': {'cpu_kernels'},
  'cpu_kernels': set(),
  'data': set(),
  'weights': {'models', 'nn', 'ops'},
  'lookup': set(),
  'version': set(),
}


def _imports(path):
  """Dotted names that a file imports from this project."""
  package = ('', *path.relative_to(ROOT).parts[:-1])
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else ()
      module = '.'.join([*filter(None, base), *filter(None, [node.module])])
      yield from (f'{module}.{alias.name}' for alias in node.names)


def _layer(path):
  parts = path.relative_to(ROOT).parts
  if parts[0] == 'acmix_jax' and parts[1] != '__init__.py':
    return parts[1].removesuffix('.py')
  return parts[0].removesuffix('.py')


def _files():
  packages = [*ROOT.glob('acmix_jax/**/*.py'), *ROOT.glob('configs/**/*.py')]
  return sorted([ROOT / 'main.py', *packages])


@pytest.mark.parametrize(
  'path', _files(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_point_down(path):
  layer = _layer(path)
  for name in _imports(path):
    top, _, rest = name.partition('.')
    # An install has the recipes in acmix_jax.configs alone.
    assert top != 'configs', name
    if top != 'acmix_jax':
      continue
    target, _, module = rest.partition('.')
    assert target in BELOW[layer] | {layer} | BOTTOM, (
      f'{layer} must not import {name}'
    )
    if target == 'configs':
      assert module in SHARED_CONFIGS, name


@pytest.mark.parametrize('module', ['tensorflow', 'clu.metric_writers'])
def test_nothing_imports_tensorflow(module):
  for path in _files():
    for name in _imports(path):
      assert not f'{name}.'.startswith(f'{module}.'), path
