"""The tools as commands of one program: acmix-jax, python -m acmix_jax."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from acmix_jax import lookup
from acmix_jax.version import __version__


class _Command(NamedTuple):
  """A tool.

  Attributes:
    module: Module of `acmix_jax.tools` with its `main`.
    help: What it does, in a line.
    arguments: What its `main` is given before the arguments of the user.
  """

  module: str
  help: str
  arguments: tuple[str, ...] = ()


COMMANDS = {
  'train': _Command('train', 'train a model, or go on with a training'),
  'eval': _Command('train', 'evaluate what was trained', ('--mode=eval',)),
  'predict': _Command('predict', 'draw what a trained model says of images'),
  'plots': _Command('plots', 'draw the curves and path weights of a training'),
  'prepare': _Command('prepare', 'pack a data set, or check its labels'),
  'convert': _Command('convert', 'convert official PyTorch weights'),
  'export': _Command('export', 'write a model for other programs'),
  'cost': _Command('cost.__main__', 'count parameters and multiply-adds'),
  'aot': _Command('aot.__main__', 'compile an update for a TPU pod elsewhere'),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command.

  Returns:
    Its exit status.
  """
  argv = sys.argv[1:] if argv is None else argv
  lines = [f'  {name:9}{command.help}' for name, command in COMMANDS.items()]
  parser = argparse.ArgumentParser(
    prog='acmix-jax',
    usage='%(prog)s COMMAND [ARGUMENT ...]',
    description='\n'.join(['commands:', *lines]),
    epilog='%(prog)s COMMAND --help says more.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('command', help=argparse.SUPPRESS)
  parser.add_argument('--version', action='version', version=__version__)
  name = parser.parse_args(argv[:1]).command
  if name not in COMMANDS:
    parser.error(lookup.unknown('Command', name, COMMANDS))
  command = COMMANDS[name]
  # What the tool calls itself in its help.
  sys.argv[0] = f'acmix-jax {name}'
  tool = importlib.import_module(f'acmix_jax.tools.{command.module}')
  return tool.main([*command.arguments, *argv[1:]])


if __name__ == '__main__':
  sys.exit(main())
