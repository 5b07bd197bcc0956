"""The README: its Python blocks run, its commands name what exists."""

import importlib.util
import pathlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
# A smaller model and smaller images than a reader would take.
SMALLER = {
  "'resnet50_acmix',": "'resnet26_acmix', stage_sizes=(1,), width=16,",
  '224, 224': '32, 32',
}


def _blocks(language):
  return re.findall(rf'^ *```{language}\n(.*?)^ *```$', README, re.S | re.M)


def _commands():
  lines = '\n'.join(_blocks('bash')).replace('\\\n', ' ').splitlines()
  lines += re.findall('`(python -m .*?)`', README)
  words = (shlex.split(line, comments=True) for line in lines)
  return [command for line in words for command in _split(line)]


def _split(words):
  """The commands of a line, from the name of python on."""
  text = ' '.join(words).replace(' && ', '\n').replace('; ', '\n')
  for line in text.splitlines():
    command = shlex.split(line)
    starts = [i for i, x in enumerate(command) if re.search('python3?$', x)]
    if starts:
      yield command[starts[0] + 1 :]


@pytest.mark.parametrize('block', _blocks('python'))
def test_python_blocks_run_as_they_are(block):
  for large, small in SMALLER.items():
    block = block.replace(large, small)
  exec(compile(block, 'README.md', 'exec'), {'__name__': 'readme'})


# What ml_collections reads configs with.
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
def test_commands_name_configs_and_fields_that_exist(monkeypatch):
  monkeypatch.chdir(ROOT)
  commands = [c for c in _commands() if c and c[0] == 'main.py']
  assert len(commands) > 5
  for _, *options in commands:
    options = [
      x.replace('=CONFIG', '=configs/resnet50_acmix.py')
      for x in options
      if x.startswith('--config')
    ]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
      'config',
      lock_config=True,
      flag_values=values,
      sys_argv=['main', *options],
    )
    values(['main', *options])
    assert values.config.model.name


def test_commands_name_modules_that_exist():
  modules = [c[1] for c in _commands() if c and c[0] == '-m']
  assert 'acmix_jax.tools.cost' in modules
  for module in set(modules) - {'venv', 'pytest'}:
    assert importlib.util.find_spec(module), module
