"""A tiny training with all that draws random numbers or groups images."""

import sys

from flax import linen as nn

from acmix_jax import models
from acmix_jax.nn import layers
from tests.train import tiny_run


class Grouped(tiny_run.Tiny):
  """`Tiny` with groups of batch normalisation and a path that is dropped."""

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Conv(8, (3, 3), (2, 2), name='conv')(x)
    x = nn.relu(layers.BatchNorm(2, name='norm')(x, train=train))
    # What drops a path: one number for each image.
    drop = nn.Dropout(0.5, (1, 2, 3), deterministic=not train)
    x = x + drop(nn.Conv(8, (1, 1), name='path')(x))
    return nn.Dense(self.num_classes, name='head')(x.mean((1, 2)))


def config():
  """All augmentation, four updates and their evaluation."""
  config = tiny_run.config(
    num_steps=4, log_every_steps=1, eval_every_steps=4, checkpoint_every_steps=4
  ).unlock()
  config.data.flip = 0.5
  config.data.randaugment_operations = 2
  config.augment.erasing_probability = 0.5
  config.augment.mixup_alpha = 0.8
  config.augment.cutmix_alpha = 1.0
  config.augment.mixup_group_size = 4
  return config


def main() -> None:
  """Trains on all devices of all processes."""
  from acmix_jax.train import loop, mesh

  mesh.initialize_processes()
  models.create_model = lambda name, num_classes, **fields: Grouped(num_classes)
  full = config()
  full.mesh.data = -1
  loop.run(full, sys.argv[1])


if __name__ == '__main__':
  main()
