"""The recipes for ADE20K (ADEChallengeData2016, 150 classes), one a head.

Each field is listed once, the backbone's too: any can be set on the command
line. The sources train PVT (Semantic FPN) and Swin (UperNet); other backbones
take the recipe of the head with the optimiser of their family.
"""

import ml_collections

from acmix_jax.configs import backbones, common


def semantic_fpn(
  backbone: str, schedule: str = 'paper'
) -> ml_collections.ConfigDict:
  """Semantic FPN, 80,000 updates of 16 images.

  Source: "Pyramid Vision Transformer", section 5.3, and segmentation/ of
  whai362/PVT, whose README counts 40,000 updates of 32 images at twice the rate
  as the same. ResNet and SAN: the recipe of its ResNet-50, but for the deep
  stem of that.

  Args:
    backbone: registered name of the backbone.
    schedule: 'paper', or 'release': 40,000 updates of 32 images.

  Raises:
    ValueError: an unknown backbone or schedule.
  """
  if schedule not in ('paper', 'release'):
    raise ValueError(
      f"Schedule {schedule!r} is unknown. Known: 'paper', 80,000 updates of 16 "
      "images, and 'release', 40,000 of 32."
    )
  config = _segmentation('semantic_fpn', backbone)
  config.model.neck_features = 256  # channels of the pyramid
  # Start values of its kernels: 'kaiming', as in the mmsegmentation of the
  # source, or 'xavier', as in later ones.
  config.model.neck_start = 'kaiming'
  config.model.head_features = 128
  config.train.num_steps = 80_000
  config.train.batch_size = 16
  config.train.eval_every_steps = 8_000
  config.optim.schedule = 'poly'
  config.optim.power = 0.9
  config.optim.reference_batch_size = 16
  if _is_transformer(backbone):
    config.model.drop_path = 0.1
    config.optim.name = 'adamw'
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 1e-4
  else:
    _add_sgd(config.optim)
  if schedule == 'release':
    config.train.num_steps //= 2
    config.train.eval_every_steps //= 2
    config.train.batch_size *= 2
  return config


def upernet(backbone: str) -> ml_collections.ConfigDict:
  """UperNet with an auxiliary head, 160,000 updates of 16 images.

  Source: configs/swin/ of SwinTransformer/Swin-Transformer-Semantic-
  Segmentation, which trains in float32 and clips no gradient. ResNet and SAN:
  the optimiser of mmsegmentation's schedule_160k.py, which its ResNets have.

  Args:
    backbone: registered name of the backbone.

  Raises:
    ValueError: an unknown backbone.
  """
  config = _segmentation('upernet', backbone)
  config.model.head_features = 512
  config.model.auxiliary_features = 256
  config.model.bins = (1, 2, 3, 6)  # sides of the pooled grids
  config.loss.auxiliary_weight = 0.4
  config.train.num_steps = 160_000
  config.train.batch_size = 16
  config.train.eval_every_steps = 16_000
  config.optim.schedule = 'poly'
  if _is_transformer(backbone):
    config.model.drop_path = 0.3
    config.optim.name = 'adamw'
    config.optim.learning_rate = 6e-5
    config.optim.power = 1.0
    config.optim.weight_decay = 0.01
    config.optim.warmup = 'times_decay'
    config.optim.warmup_steps = 1_500
    config.optim.warmup_start = 1e-6
    # Norms of the backbone and Swin's tables of relative positions; biases and
    # the head's norms do decay.
    config.optim.groups.no_decay.pattern = (
      r'^backbone/.*(norm|(operator|attention)/bias$)'
    )
  else:
    _add_sgd(config.optim)
    config.optim.power = 0.9
    config.optim.end_learning_rate = 1e-4
  return config


def _is_transformer(backbone: str) -> bool:
  return backbones.family(backbone) in ('pvt', 'swin')


def _add_sgd(optim: ml_collections.ConfigDict) -> None:
  """What mmsegmentation trains ResNets with."""
  optim.name = 'sgd'
  optim.learning_rate = 0.01
  optim.momentum = 0.9
  optim.weight_decay = 5e-4


def _segmentation(head: str, backbone: str) -> ml_collections.ConfigDict:
  """What every segmenter has, with the values that both sources share."""
  config = common.base('segmentation')

  config.model = backbones.model(head, backbone, num_classes=150)
  # Probability that a channel is dropped before the logits.
  config.model.dropout = 0.1

  data = config.data
  data.name = 'ade20k'  # or 'segmentation_folder'
  # Of 'segmentation_folder': names of the classes, in the order of their
  # numbers; number of pixels that do not count; whether 0 does not count either
  # and 1 is the first class.
  data.class_names = ()
  data.ignored_label = 255
  data.zero_is_ignored = False
  # Longer and shorter side, in pixels, within which an image is resized.
  data.image_scale = (2048, 512)
  data.ratio_range = (0.5, 2.0)  # random factor of it in training
  data.crop_size = 512  # side of a training crop, in pixels
  # No class shall have this share of a crop, or more, within ten draws; 1: any.
  data.max_category_share = 0.75
  data.flip = 0.5  # probability
  data.photometric = True  # random brightness, contrast, saturation and hue
  # Factors of image_scale at which an image is evaluated, e.g. (0.5, 0.75, 1.0,
  # 1.25, 1.5, 1.75): the probabilities are averaged.
  data.eval_ratios = (1.0,)
  # Sides of evaluated images are rounded up to its multiples, as PVT does; 1:
  # exact, as Swin does. Each size is a compilation: there are far more at 1.
  data.eval_multiple = 32

  config.loss = ml_collections.ConfigDict()
  # Pixels that the loss is a mean over. 'all': those without a label, too,
  # where it is 0, as in the sources; 'valid': those with a label.
  config.loss.average = 'all'

  config.train.checkpoint_every_steps = 2_000
  config.eval.batch_size = 16
  # 'whole' images, as in the sources, or 'slide': windows, averaged where they
  # overlap.
  config.eval.mode = 'whole'
  config.eval.window = 512  # side of a window, in pixels
  config.eval.stride = 341  # pixels from one to the next
  config.eval.flip = False  # whether mirrored images are averaged in, too

  config.optim.reference_batch_size = 0
  config.optim.warmup_epochs = 0.0
  return config
