"""The recipes for ImageNet-1k, one for each family of models.

Each field is listed once, the model's too: any can be set on the command line.
"""

import ml_collections

from acmix_jax.configs import common


def resnet(
  name: str, *, stage_sizes: tuple[int, ...]
) -> ml_collections.ConfigDict:
  """ResNet-26/38/50 on ImageNet-1k, 100 epochs of 256 images.

  Source: the paper where it says so, else the defaults of the official
  ResNet/main.py.

  Args:
    name: registered name of the model.
    stage_sizes: blocks of each stage.
  """
  config = _classification(name, stage_sizes)
  # Channels of the stem and of the first stage's operators.
  config.model.width = 64
  # 'imagenet': 7x7 with stride 2, then max pooling; 'small': 3x3 with stride 1.
  config.model.stem = 'imagenet'
  config.model.num_heads = 4
  config.model.kernel_att = 7  # side of the attention window
  _add_batch_norm(config.model)
  # Implementation of local attention: 'auto', 'pallas', 'cpu_kernel', 'tiles'
  # or 'patches'.
  config.model.attention_implementation = 'auto'
  return config


def san(
  name: str, *, stem_size: int, stage_sizes: tuple[int, ...]
) -> ml_collections.ConfigDict:
  """SAN-10/15/19 on ImageNet-1k, 100 epochs of 256 images.

  Source: config/imagenet/ and tool/train.py of hszhao/SAN. The learning rate
  follows the cosine in every update, where the source changes it once an epoch.

  Args:
    name: registered name of the model.
    stem_size: blocks of the stem.
    stage_sizes: blocks of each stage.
  """
  config = _classification(name, stage_sizes)
  config.model.widths = (256, 512, 1024, 2048)  # channels of each stage
  config.model.kernel_sizes = (7, 7, 7, 7)  # side of the attention windows
  config.model.stem_size = stem_size  # blocks of the stem
  config.model.stem_width = 64  # channels of the stem
  config.model.stem_kernel_size = 3  # side of the stem's attention windows
  _add_batch_norm(config.model)
  config.optim.warmup_epochs = 0.0
  return config


def pvt(
  name: str, *, stage_sizes: tuple[int, ...]
) -> ml_collections.ConfigDict:
  """PVT-Tiny/Small on ImageNet-1k, 300 epochs of 1024 images.

  Source: the defaults of classification/main.py of whai362/PVT. The learning
  rate changes in every update, where the source changes it once an epoch and an
  epoch late; the source evaluates and trains in float16 where it can.

  Args:
    name: registered name of the model.
    stage_sizes: blocks of each stage.
  """
  config = _transformer(name, stage_sizes, drop_path=0.1)
  # Side of the images whose grid the position embeddings have, in pixels: that
  # of the data where it is not set; they are interpolated for others.
  config.model.image_size = config.data.get_oneway_ref('image_size')
  config.model.patch_size = 4  # side of the first stage's patches, in pixels
  config.model.widths = (64, 128, 320, 512)  # channels of each stage
  config.model.num_heads = (1, 2, 5, 8)  # heads of each stage
  # Hidden features of the MLP / channels.
  config.model.mlp_ratios = (8, 8, 4, 4)
  # Side of the patches that become one key, in pixels of the stage's map.
  config.model.reductions = (8, 4, 2, 1)
  config.data.repeats = 3
  config.optim.warmup_epochs = 5.0
  # Norms, biases, the class token, the weights of ACmix's two paths; the
  # position embeddings do decay.
  config.optim.groups.no_decay.pattern = '(bias|scale|alpha|beta|token)$'
  return config


def swin(
  name: str, *, stage_sizes: tuple[int, ...], drop_path: float
) -> ml_collections.ConfigDict:
  """Swin-Tiny/Small on ImageNet-1k, 300 epochs of 1024 images.

  Source: config.py and configs/ of the Swin-Transformer of LeapLabTHU/ACmix,
  for Swin and its ACmix alike. The source scales the last learning rate with
  the batch, and computes in float16 where it can; here neither is done.

  Args:
    name: registered name of the model.
    stage_sizes: blocks of each stage.
    drop_path: probability that the last block is skipped in training.
  """
  config = _transformer(name, stage_sizes, drop_path)
  config.model.patch_size = 4  # side of the first stage's patches, in pixels
  config.model.width = 96  # channels of the first stage, doubled in each later
  config.model.num_heads = (3, 6, 12, 24)  # heads of each stage
  config.model.window_size = 7  # side of the attention windows
  config.model.mlp_ratio = 4.0  # hidden features of the MLP / channels
  config.optim.warmup_epochs = 20.0
  # Norms, biases, among them the tables of relative positions, and the weights
  # of ACmix's two paths; the kernels of its convolution path do decay.
  config.optim.groups.no_decay.pattern = '(bias|scale|alpha|beta)$'
  config.optim.clip_norm = 5.0
  return config


def _transformer(
  name: str, stage_sizes: tuple[int, ...], drop_path: float
) -> ml_collections.ConfigDict:
  """What PVT and Swin share: DeiT's recipe with timm 0.3.2.

  There is no colour jitter, which the sources ask for but which timm leaves out
  beside RandAugment.
  """
  config = _classification(name, stage_sizes)
  # Probability that the last block is skipped in training; the first block's is
  # 0, and those between are on a line.
  config.model.drop_path = drop_path
  config.data.interpolation = 'bicubic'
  config.data.randaugment_operations = 2
  config.train.num_epochs = 300
  config.train.batch_size = 1024

  config.augment.erasing_probability = 0.25
  config.augment.mixup_alpha = 0.8
  config.augment.cutmix_alpha = 1.0
  config.augment.mixup_group_size = 128  # the batch of each of 8 GPUs
  config.loss.smooth_over = 'all'

  config.optim.name = 'adamw'
  config.optim.learning_rate = 5e-4
  config.optim.reference_batch_size = 512
  config.optim.warmup_start = 1e-3  # 1e-6 with 1024 images
  config.optim.warmup = 'over_decay'
  config.optim.end_learning_rate = 1e-5
  config.optim.weight_decay = 0.05
  return config


def _add_batch_norm(model: ml_collections.ConfigDict) -> None:
  """Adds the fields of BatchNorm to those of a model."""
  # Groups of the batch with batch statistics of their own. 1: the whole batch
  # shares them; 8: the paper's 8 GPUs of 32 images.
  model.norm_groups = 1
  # 'batch': batch statistics; 'running': running statistics, scale and bias are
  # trained; 'frozen': neither changes.
  model.batch_norm = 'batch'


def _classification(
  name: str, stage_sizes: tuple[int, ...]
) -> ml_collections.ConfigDict:
  """What every classifier has, with the values of the ResNets."""
  config = common.base('classification')

  config.model = ml_collections.ConfigDict()
  config.model.name = name
  config.model.num_classes = 1000
  config.model.stage_sizes = stage_sizes  # blocks of each stage
  # First stages that are not trained, with the stem; 0: all are trained.
  config.model.frozen_stages = 0
  config.model.kernel_conv = 3  # side of ACmix's shift convolution
  config.model.dtype = 'float32'  # computation; 'bfloat16' is faster
  config.model.param_dtype = 'float32'
  # What the gradient computes again, to save memory: 'none', all but the
  # 'products', or each whole 'block'.
  config.model.remat = 'none'
  # Implementation of the shift convolution: 'auto', 'cpu_kernel',
  # 'grouped', 'channels' or 'shifts'.
  config.model.convolution_implementation = 'auto'

  config.data.image_size = 224  # px
  # px, short side before the central crop: 256 for 224, in proportion to the
  # image size where it is not set.
  config.data.eval_resize = (
    config.data.get_oneway_ref('image_size') * 256 // 224
  )
  config.data.interpolation = 'bilinear'  # or 'bicubic'
  config.data.crop_scale = (0.08, 1.0)  # crop's area / image's area
  config.data.crop_ratio = (3 / 4, 4 / 3)  # crop's width / height
  config.data.flip = 0.5  # probability
  # Random distortions of a training image; 0: no RandAugment.
  config.data.randaugment_operations = 0
  config.data.randaugment_magnitude = 9.0  # mean strength, 0 to 10
  config.data.randaugment_std = 0.5  # standard deviation of the strength

  config.augment = ml_collections.ConfigDict()  # of batches, on the device
  config.augment.erasing_probability = 0.0
  config.augment.mixup_alpha = 0.0  # of Beta(alpha, alpha); 0: no mixup
  config.augment.cutmix_alpha = 0.0  # of Beta(alpha, alpha); 0: no CutMix
  config.augment.mixup_probability = 1.0  # of either, where one is on
  config.augment.mixup_switch_probability = 0.5  # of CutMix, where both are
  # Images that share a draw; 0, or if it does not divide the batch: all of it.
  config.augment.mixup_group_size = 0

  config.loss = ml_collections.ConfigDict()
  config.loss.label_smoothing = 0.1
  # Classes that share the smoothing. 'others': all but the label, as in the
  # official code; 'all': the label too, as in timm.
  config.loss.smooth_over = 'others'
  return config
