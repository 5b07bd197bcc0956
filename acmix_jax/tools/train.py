r"""Trains or evaluates a model.

    acmix-jax train --config=resnet50_acmix --workdir=DIR \
        [--config.FIELD=VALUE ...]
    acmix-jax eval --config=resnet50_acmix --workdir=DIR [--checkpoint=STEP]

The config is the name of a recipe or a file, with an argument behind a colon if
it takes one: ade20k_upernet:swin_tiny_acmix, my_recipe.py. Any field can be
set: --config.train.batch_size=512. The same command resumes a training that
ended early. On a TPU pod, or under Slurm, run it in every process; elsewhere
tell the processes of each other through JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID.

Exit status: 0 also after SIGTERM or Ctrl-C, which save a checkpoint first; 2
for a config that cannot be read.
"""

import argparse
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Sequence

from absl import logging as absl_logging

from acmix_jax.tools import config_file


def _parse(argv):
  """The arguments, and the flags that set fields."""
  parser = argparse.ArgumentParser(
    description='Trains or evaluates a model. Fields of the config follow as '
    '--config.FIELD=VALUE.',
    epilog=f'Recipes: {", ".join(config_file.recipes())}.',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config',
    required=True,
    metavar='NAME|FILE.py[:ARGUMENT]',
    help='a recipe, or a file with one',
  )
  parser.add_argument(
    '--workdir',
    required=True,
    metavar='DIR',
    help='folder for checkpoints and metrics, seen by all processes',
  )
  parser.add_argument(
    '--mode',
    choices=('train', 'eval'),
    default='train',
    help='what to do (default: train)',
  )
  parser.add_argument(
    '--checkpoint',
    default='',
    help='to evaluate: a step of the workdir, or the path of a workdir, of a '
    'checkpoint or of a .safetensors file (default: the best of the workdir)',
  )
  return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs `acmix_jax.train.loop.run`; the process ends soon after it.

  Returns:
    The exit status, see the head of this file.
  """
  args, overrides = _parse(argv)
  try:
    config = config_file.load(args.config, overrides)
  except ValueError as error:
    print(f'{args.mode}: {error}', file=sys.stderr)
    return 2
  # Here, not above: --help answers at once.
  import jax

  from acmix_jax import cpu_kernels
  from acmix_jax.train import loop, mesh

  # Crashes of compiled code name the line of Python.
  faulthandler.enable()
  absl_logging.use_absl_handler()
  absl_logging.set_verbosity(absl_logging.INFO)
  # Libraries that log by absl, Orbax among them, report every call at INFO.
  logging.getLogger('absl').setLevel(logging.WARNING)
  mesh.initialize_processes()
  if jax.default_backend() == 'cpu':
    cpu_kernels.enable()
  status = 1
  try:
    loop.run(config, args.workdir, args.mode, args.checkpoint)
    status = 0
  finally:
    if not jax.distributed.is_initialized():
      # Everything is saved and closed, but Python waits for all threads, also
      # for one that reads a file which never answers.
      end = threading.Timer(5, os._exit, [status])
      end.daemon = True
      end.start()
  return status


if __name__ == '__main__':
  sys.exit(main())
