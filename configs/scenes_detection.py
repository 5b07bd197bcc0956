"""What makes of a recipe for COCO one for scenes of handwritten digits."""

import ml_collections


def adapt(config: ml_collections.ConfigDict) -> None:
  """Takes scenes of 64 x 96 pixels, and a small model trained from nothing.

  Args:
    config: recipe for a ResNet.
  """
  model = config.model
  model.num_classes = 10
  model.stage_sizes = (1, 1, 1)
  model.width = 32
  model.frozen_stages = 0
  model.batch_norm = 'batch'
  model.neck_features = 64
  model.images_per_group = 0

  data = config.data
  data.name = 'scene_objects'
  data.train_scales = ((96, 64),)  # as composed
  data.eval_scale = (96, 64)
  data.canvases = ((64, 96),)
  data.flip = 0.0  # mirrored digits are no digits
  data.max_objects = 4

  config.train.num_steps = 1000
  config.train.batch_size = 16
  config.train.log_every_steps = 50
  config.train.eval_every_steps = 250
  config.train.checkpoint_every_steps = 250
  config.eval.batch_size = 40

  optim = config.optim
  optim.name = 'adamw'
  optim.learning_rate = 1e-3
  optim.schedule = 'cosine'
  optim.milestone_epochs = ()
  optim.warmup_steps = 100
  optim.weight_decay = 0.05
  optim.clip_norm = 10.0
