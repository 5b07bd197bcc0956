"""A tiny ADE20K in the official layout, and a tiny segmenter that learns it.

Run as a program it trains, for tests with several processes:
`python -m tests.tasks.tiny_segmentation DATA WORKDIR`.
"""

import pathlib
import sys
import types

import ml_collections
import numpy as np
from flax import linen as nn

from acmix_jax import models
from configs import ade20k
from tests import fake_data
from tests.tasks import dense_run

CLASSES = ('wall', 'sky, heavens', 'tree')
SIZES = ((40, 52), (52, 40), (36, 64))  # height, width
TRAINING, VALIDATION, DAMAGED = 13, 9, 4


def write_ade20k(directory: pathlib.Path) -> pathlib.Path:
  """Writes DIR/ADEChallengeData2016; one image of validation is damaged.

  A picture is a left and a right half, each of the colour of its class, with a
  frame of 'other'.
  """
  home = directory / 'ADEChallengeData2016'
  for split, count in (('training', TRAINING), ('validation', VALIDATION)):
    images, labels = (home / kind / split for kind in ('images', 'annotations'))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for i in range(count):
      name = f'ADE_{split[:5]}_{i:08}'
      image, label = _example(i + 1000 * (split == 'validation'))
      content = fake_data.encode(image)
      if (split, i) == ('validation', DAMAGED):
        content = content[: len(content) // 2]
      (images / f'{name}.jpg').write_bytes(content)
      (labels / f'{name}.png').write_bytes(fake_data.encode(label, 'png'))
  lines = [f'{i}\t0.1\t9\t1\t1\t{name}' for i, name in enumerate(CLASSES, 1)]
  (home / 'objectInfo150.txt').write_text(
    '\n'.join(['Idx\tRatio\tTrain\tVal\tStuff\tName', *lines]) + '\n'
  )
  return home


def _example(seed):
  rng = np.random.default_rng(seed)
  height, width = SIZES[seed % 3]
  label = np.zeros((height, width), np.uint8)
  middle = rng.integers(width // 3, 2 * width // 3)
  label[2:-2, :middle] = rng.integers(1, 4)
  label[2:-2, middle:] = rng.integers(1, 4)
  image = fake_data.picture(seed, (width, height)) // 3
  for channel in range(3):
    image[..., channel] += 160 * (label == channel + 1).astype(np.uint8)
  return image, label


class Segmenter(nn.Module):
  """Batch statistics, dropout, a head and an auxiliary head."""

  num_classes: int
  backbone = types.SimpleNamespace(frozen_parameters=lambda: '')

  def setup(self):
    self.conv = nn.Conv(8, (4, 4), (4, 4))
    self.norm = nn.BatchNorm(momentum=0.9)
    self.drop = nn.Dropout(0.1, broadcast_dims=(1, 2))
    self.head = nn.Dense(self.num_classes)
    self.auxiliary = nn.Dense(self.num_classes)

  def _features(self, images, train):
    return nn.relu(self.norm(self.conv(images), use_running_average=not train))

  def __call__(self, images, *, train=False):
    if self.is_initializing():
      return self.training_logits(images, train=train)['head']
    return self.head(self._features(images, train))

  def training_logits(self, images, *, train=True):
    x = self._features(images, train)
    dropped = self.drop(x, deterministic=not train)
    coarse = nn.avg_pool(x, (2, 2), (2, 2))
    return {'head': self.head(dropped), 'auxiliary': self.auxiliary(coarse)}


def use_tiny(patch):
  """`models.create_model` makes the tiny segmenter."""
  patch.setattr(
    models,
    'create_model',
    lambda name, num_classes, **fields: Segmenter(num_classes),
  )


def config(data: pathlib.Path, **train) -> ml_collections.ConfigDict:
  """A recipe; none of its intervals divides another, or the steps."""
  config = ade20k.upernet('resnet26')
  config.model.num_classes = len(CLASSES)
  config.data.dir = str(data)
  config.data.image_scale = (64, 32)
  config.data.crop_size = 32
  config.data.eval_multiple = 8
  config.data.photometric = False
  config.train.update(dense_run.SCHEDULE | train)
  config.optim.learning_rate = 0.1
  config.eval.batch_size = 8
  config.mesh.data = 1
  return config.lock()


if __name__ == '__main__':
  dense_run.main(sys.modules[__name__])
