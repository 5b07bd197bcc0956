"""A tiny detector of boxes and masks, and a recipe for it on a tiny COCO.

Run as a program it trains, for tests with several processes:
`python -m tests.tasks.tiny_detection DATA WORKDIR`.
"""

import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from acmix_jax import models
from acmix_jax.models import detection
from configs import coco
from tests import fake_coco
from tests.tasks import dense_run

CLASSES = tuple(category['name'] for category in fake_coco.CATEGORIES)
OBJECTS = 2  # that are learnt; the images have up to 3
DETECTIONS = 6
CANVASES = ((32, 48), (48, 32))


class Detector(nn.Module):
  """Says of an image's mean features what its first objects are."""

  num_classes: int
  backbone = types.SimpleNamespace(frozen_parameters=lambda: '')

  def setup(self):
    self.conv = nn.Conv(8, (8, 8), (8, 8))
    self.norm = nn.BatchNorm(momentum=0.9)
    self.neck = nn.Dense(16)
    self.head = nn.Dense(DETECTIONS * (self.num_classes + 4))
    self.mask_head = nn.Dense(DETECTIONS * 28 * 28)

  def networks(self, images, *, train=False):
    x = self.norm(self.conv(images), use_running_average=not train)
    x = nn.relu(self.neck(nn.relu(x).mean(axis=(1, 2))))
    outputs = self.head(x).reshape(len(x), DETECTIONS, -1)
    masks = self.mask_head(x).reshape(len(x), DETECTIONS, 28, 28)
    # The mean box of the data lies in the upper left.
    corners = outputs[..., -4:] + jnp.array([[[-1.1, -1.1, 0.3, 0.3]]])
    return outputs[..., :-4], nn.sigmoid(corners), masks

  def __call__(self, images, sizes, *, train=False):
    logits, corners, masks = self.networks(images, train=train)
    scores = nn.softmax(logits)
    return detection.Detections(
      corners * jnp.tile(sizes[:, ::-1], 2)[:, None],
      scores.max(axis=-1),
      scores.argmax(axis=-1),
      scores.max(axis=-1) > 0.35,
      nn.sigmoid(masks),
    )

  def losses(self, images, sizes, truth, *, train=True):
    logits, corners, masks = (
      x[:, :OBJECTS] for x in self.networks(images, train=train)
    )
    weights = jax.random.uniform(self.make_rng('sampling'), truth.valid.shape)
    weights *= truth.valid
    goals = truth.boxes / jnp.tile(sizes[:, ::-1], 2)[:, None]
    labels = jax.nn.one_hot(truth.labels, self.num_classes)
    shares = truth.masks.mean(axis=(2, 3))
    sums = {
      'loss_cls': -(nn.log_softmax(logits) * labels).sum(axis=-1),
      'loss_bbox': jnp.abs(corners - goals).sum(axis=-1),
      'loss_mask': jnp.square(nn.sigmoid(masks).mean(axis=(2, 3)) - shares),
      'acc': logits.argmax(axis=-1) == truth.labels,
    }
    return {
      name: (weights * x).sum() / weights.sum() for name, x in sums.items()
    }


def use_tiny(patch):
  """`models.create_model` makes the tiny detector."""
  patch.setattr(
    models,
    'create_model',
    lambda name, num_classes, **fields: Detector(num_classes),
  )
  patch.setattr(detection, 'MaskRCNN', Detector)


def config(data: pathlib.Path, **train) -> ml_collections.ConfigDict:
  """A recipe; none of its intervals divides another, or the steps."""
  config = coco.mask_rcnn('resnet26')
  config.model.num_classes = len(CLASSES)
  config.data.dir = str(data)
  config.data.train_scales = ((48, 32), (40, 24))
  config.data.eval_scale = (48, 32)
  config.data.canvases = CANVASES
  config.data.max_objects = OBJECTS
  config.data.train_empty_images = True
  config.data.mask_size = 16
  config.train.update(dense_run.SCHEDULE | train)
  config.optim.learning_rate = 0.1
  config.optim.warmup_steps = 3
  config.eval.batch_size = 8
  config.mesh.data = 1
  return config.lock()


if __name__ == '__main__':
  dense_run.main(sys.modules[__name__])
