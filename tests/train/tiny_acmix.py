"""Networks of one block for the digits, with ACmix or without."""

import jax

from acmix_jax.train import build, checkpoint, recorded_config
from acmix_jax.train import mesh as mesh_lib
from configs import digits_acmix


def config(name, **fields):
  """A training of one update that changes nothing.

  Args:
    name: Registered name of a ResNet.
    **fields: Fields of the config's top level.
  """
  config = digits_acmix.get_config()
  config.model.name = name
  config.model.stage_sizes = (1,)
  config.model.width, config.model.kernel_att = 8, 3
  config.model.batch_norm = 'running'
  config.optim.learning_rate = 0.0
  config.train.num_steps = 1
  config.eval.batch_size = 128
  config.update(fields)
  return config.lock()


def write(workdir, name):
  """Makes the workdir of a training that ended as it started, at random."""
  training = build.Training(config(name), mesh_lib.make_mesh(config(name).mesh))
  checkpoints = checkpoint.Checkpoints(
    workdir,
    keep_latest=1,
    keep_best=0,
    best_metric='top1',
    description=training.task.description('train'),
  )
  checkpoints.save(training.init(jax.random.key(0)), 1, {})
  checkpoints.close()
  recorded_config.write(workdir, training.config)
