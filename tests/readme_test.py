"""The pages: their Python blocks run, their commands name what exists."""

import pathlib
import re
import shlex

import pytest

from acmix_jax import __main__ as program
from acmix_jax.tools import config_file

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
  path.name: path.read_text()
  for path in [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
}
# A smaller model and smaller images than a reader would take.
SMALLER = {
  "'resnet50_acmix',": "'resnet26_acmix', stage_sizes=(1,), width=16,",
  '224, 224': '32, 32',
}
# In a clone that is not installed.
SCRIPTS = {
  'python main.py': 'acmix-jax train',
  'python -m acmix_jax': 'acmix-jax',
}


def _blocks(language):
  """(page, block) of the fenced blocks in a language."""
  pattern = re.compile(rf'^ *```{language}\n(.*?)^ *```$', re.S | re.M)
  return [(page, x) for page in PAGES for x in pattern.findall(PAGES[page])]


def _commands():
  """(page, arguments of acmix-jax) of the blocks and within sentences."""
  snippets = _blocks('bash')
  for page, text in PAGES.items():
    prose = re.sub('```.*?```', '', text, flags=re.S)
    codes = re.findall('`(.*?)`', prose, re.S)
    snippets += [(page, ' '.join(code.split())) for code in codes]
  for page, text in snippets:
    text = re.sub(r'\\?\n  +', ' ', text)
    for script, command in SCRIPTS.items():
      text = text.replace(script, command)
    for command in re.findall(r'acmix-jax ((?:.(?! &&|"$| #))*.)', text, re.M):
      yield page, shlex.split(command)


@pytest.mark.parametrize(
  'block',
  [pytest.param(block, id=page) for page, block in _blocks('python')],
)
def test_python_blocks_run_as_they_are(block):
  for large, small in SMALLER.items():
    block = block.replace(large, small)
  exec(compile(block, 'README.md', 'exec'), {'__name__': 'readme'})


def test_commands_name_tools_configs_and_fields_that_exist():
  loaded = set()
  for page, (name, *options) in _commands():
    assert name in {*program.COMMANDS, '--help'}, (page, name)
    overrides = [x for x in options if x.startswith('--config.')]
    configs = [x[9:] for x in options if x.startswith('--config=')]
    if name == 'aot':
      configs = options[:1]
    for config in configs:
      config = config.replace('CONFIG', 'resnet50')
      assert config_file.load(config, overrides).model.name, page
      loaded.add(config)
  assert len(loaded) > 8
