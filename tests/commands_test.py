"""The tools as commands of one program."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from acmix_jax import __main__ as program

TOOLS = pathlib.Path(program.__file__).parent / 'tools'


def _tools():
  """Names of the tools: modules, or packages, with a `main`."""
  files = [*TOOLS.glob('*.py'), *TOOLS.glob('*/__main__.py')]
  return {
    file.parent.name if file.stem == '__main__' else file.stem
    for file in files
    if '\ndef main(' in file.read_text()
  }


def test_every_tool_is_a_command():
  assert 'cost' in _tools()
  assert _tools() <= set(program.COMMANDS)


def test_help_lists_the_commands_without_jax():
  script = """
import sys
from acmix_jax import __main__ as program
try:
  program.main(['--help'])
finally:
  assert not {'jax', 'numpy', 'absl'} & set(sys.modules)
"""
  shown = subprocess.run(
    [sys.executable, '-c', script], check=True, capture_output=True, text=True
  ).stdout
  for name, command in program.COMMANDS.items():
    assert f'  {name:9}{command.help}\n' in shown


@pytest.mark.parametrize('name', sorted(_tools() | {'eval'}))
def test_help_of_a_command(name, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['pytest'])
  with pytest.raises(SystemExit) as end:
    program.main([name, '--help'])
  assert end.value.code == 0
  assert capsys.readouterr().out.startswith(f'usage: acmix-jax {name} ')


def test_a_command_returns_the_status_of_its_tool(capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['pytest'])
  assert program.main(['cost', 'resnet5']) == 2
  assert "Did you mean 'resnet50'?" in capsys.readouterr().err
  arguments = ['--config=swin_tinny', '--workdir=DIR']
  assert program.main(['train', *arguments]) == 2
  assert program.main(['eval', *arguments]) == 2
  said = capsys.readouterr().err
  unknown = "Recipe 'swin_tinny' is unknown. Did you mean 'swin_tiny'?"
  assert f'train: {unknown}' in said
  assert f'eval: {unknown}' in said


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
  with pytest.raises(SystemExit) as end:
    program.main(['trian'])
  assert end.value.code == 2
  assert "'trian' is unknown. Did you mean 'train'?" in capsys.readouterr().err


def test_public_names_are_found_when_they_are_used():
  package = importlib.import_module('acmix_jax')
  for name in package.__all__:
    assert getattr(package, name) is not None
    assert name in dir(package)
  with pytest.raises(AttributeError, match="Did you mean 'create_model'?"):
    package.creat_model  # noqa: B018
