"""A training that takes a second: a tiny model on real digits."""

import json
import types

import jax
import numpy as np
from flax import linen as nn
from orbax import checkpoint as ocp

from acmix_jax import models
from acmix_jax.weights import files
from configs import imagenet


class Tiny(nn.Module):
  """Batch statistics, dropout, a scalar parameter and a head."""

  num_classes: int
  dropout: float = 0.1
  backbone = types.SimpleNamespace(frozen_parameters=lambda: '')

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.Conv(8, (3, 3), (2, 2), name='conv')(x)
    x = nn.BatchNorm(not train, momentum=0.9, name='norm')(x)
    x = nn.relu(x) * self.param('alpha', nn.initializers.ones, ())
    x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
    return nn.Dense(self.num_classes, name='head')(x)


def use_tiny(patch):
  patch.setattr(
    models,
    'create_model',
    lambda name, num_classes, **fields: Tiny(num_classes),
  )


def config(**train):
  config = imagenet.resnet('tiny', stage_sizes=())
  config.model.num_classes = 10
  config.data.name = 'digits'
  config.data.image_size = config.data.eval_resize = 8
  config.data.crop_scale = (0.7, 1.0)
  config.train.update(
    num_steps=13,
    batch_size=16,
    # None divides another, nor the number of steps.
    log_every_steps=3,
    eval_every_steps=5,
    checkpoint_every_steps=4,
  )
  config.train.update(train)
  config.optim.warmup_epochs = 0.0
  config.eval.batch_size = 128
  config.mesh.data = 1
  return config.lock()


def lines(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  for line in lines:
    line.pop('train/images_per_second', None)
  return lines


def losses(workdir):
  return [line['train/loss'] for line in lines(workdir) if 'train/loss' in line]


def steps(workdir):
  """Steps of the checkpoints that were not set aside."""
  return [int(p.name) for p in files.checkpoints(workdir / 'checkpoints')]


def state(workdir):
  """The whole latest state, leaf by leaf."""
  path = workdir / 'checkpoints' / str(steps(workdir)[-1]) / 'state'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    restored = checkpointer.restore(
      path, restore_args=jax.tree.map(lambda _: as_numpy, tree)
    )
  return jax.tree_util.tree_leaves_with_path(restored)
