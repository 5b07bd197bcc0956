"""Trains or evaluates a model.

  python main.py --config=configs/digits_acmix.py --workdir=DIR
  python main.py --config=configs/digits_acmix.py --workdir=DIR --mode=eval

Any field of the config can be set: --config.train.batch_size=512. The same
command resumes a training that ended early. On a TPU pod, or under Slurm, run
it in every process; elsewhere tell the processes of each other through
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

Exit status: 0 also after SIGTERM or Ctrl-C, which save a checkpoint first.
"""

import logging
import os
import threading

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='File with the recipe.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for checkpoints and metrics, seen by all processes.'
)
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'What to do.')
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  '',
  'For --mode=eval: a step of the workdir, or the path of a workdir, of a '
  'checkpoint or of a .safetensors file. Default: the best of the workdir.',
)


def main(argv):
  """Runs acmix_jax.train.loop.run with the flags."""
  if len(argv) > 1:
    raise app.UsageError(f'Not understood: {" ".join(argv[1:])}')
  # Here, not above: --help answers at once.
  import jax

  from acmix_jax import cpu_kernels
  from acmix_jax.train import loop, mesh

  # Libraries that log by absl, Orbax among them, report every call at INFO.
  logging.getLogger('absl').setLevel(logging.WARNING)
  mesh.initialize_processes()
  if jax.default_backend() == 'cpu':
    cpu_kernels.enable()
  status = 1
  try:
    loop.run(_CONFIG.value, _WORKDIR.value, _MODE.value, _CHECKPOINT.value)
    status = 0
  finally:
    if not jax.distributed.is_initialized():
      # Everything is saved and closed, but Python waits for all threads, also
      # for one that reads a file which never answers.
      end = threading.Timer(5, os._exit, [status])
      end.daemon = True
      end.start()


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)
