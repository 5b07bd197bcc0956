"""Complete recipes of the model families; every field of a config is here."""

import ml_collections


def resnet_imagenet(name: str) -> ml_collections.ConfigDict:
  """ResNet-26/38/50 on ImageNet-1k, 100 epochs of 256 images.

  Source: the paper where it says so, else the defaults of the official
  ResNet/main.py.
  """
  config = _base(name)
  # Groups of the batch with batch statistics of their own. 1: the whole batch
  # shares them; 8: as the paper's 8 GPUs of 32 images.
  config.model.norm_groups = 1
  return config


def san_imagenet(name: str) -> ml_collections.ConfigDict:
  """SAN-10/15/19 on ImageNet-1k, 100 epochs of 256 images.

  Source: config/imagenet/ and tool/train.py of hszhao/SAN. Differs: the rate
  follows the cosine in every update, there once an epoch.
  """
  config = _base(name)
  config.model.norm_groups = 1  # see resnet_imagenet
  config.optim.warmup_epochs = 0.0
  return config


def pvt_imagenet(name: str) -> ml_collections.ConfigDict:
  """PVT-Tiny/Small on ImageNet-1k, 300 epochs of 1024 images.

  Source: the defaults of classification/main.py of whai362/PVT. Differs: the
  rate changes in every update, there once an epoch and an epoch late; the
  source evaluates and trains in float16 where it can.
  """
  config = _transformer(name)
  config.model.drop_path = 0.1
  config.data.repeats = 3
  config.optim.warmup_epochs = 5.0
  # Norms, biases, the class token, the weights of ACmix's two paths; the
  # position embeddings do decay.
  config.optim.groups.no_decay.pattern = '(bias|scale|alpha|beta|token)$'
  return config


def swin_imagenet(name: str, *, drop_path: float) -> ml_collections.ConfigDict:
  """Swin-Tiny/Small on ImageNet-1k, 300 epochs of 1024 images.

  Source: config.py and configs/ of the Swin-Transformer of LeapLabTHU/ACmix,
  for Swin and its ACmix alike. Differs: the source scales the last rate with
  the batch, and computes in float16 where it can.
  """
  config = _transformer(name)
  config.model.drop_path = drop_path
  config.optim.warmup_epochs = 20.0
  # Norms, biases, among them the tables of relative positions, and the weights
  # of ACmix's two paths; the mixing and the shifts do decay.
  config.optim.groups.no_decay.pattern = '(bias|scale|alpha|beta)$'
  config.optim.clip_norm = 5.0
  return config


def _transformer(name: str) -> ml_collections.ConfigDict:
  """What PVT and Swin share: DeiT's recipe with timm 0.3.2.

  Differs: no colour jitter, which the sources ask for but which timm leaves out
  beside RandAugment.
  """
  config = _base(name)
  config.data.interpolation = 'bicubic'
  config.data.randaugment_operations = 2
  config.train.num_epochs = 300
  config.train.batch_size = 1024

  config.augment.erasing_probability = 0.25
  config.augment.mixup_alpha = 0.8
  config.augment.cutmix_alpha = 1.0
  config.augment.mix_group_size = 128  # the batch of each of 8 GPUs
  config.loss.smooth_over = 'all'

  config.optim.name = 'adamw'
  config.optim.learning_rate = 5e-4
  config.optim.reference_batch_size = 512
  config.optim.warmup_start = 1e-3  # 1e-6 with 1024 images
  config.optim.warmup = 'over_decay'
  config.optim.end_learning_rate = 1e-5
  config.optim.weight_decay = 0.05
  return config


def _base(name: str) -> ml_collections.ConfigDict:
  """Every field that all families have, as the ResNets are trained."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of the start, the order of the data and all augmentation
  config.task = 'classification'
  # A workdir, one of its checkpoints or converted weights (.safetensors) to
  # start from; '' starts at random.
  config.init_from = ''

  config.model = ml_collections.ConfigDict()
  config.model.name = name
  config.model.num_classes = 1000
  config.model.dtype = 'float32'  # of the computation; 'bfloat16' is faster
  # What the gradient computes again, to save memory: 'none', all but the
  # 'products', or each whole 'block'.
  config.model.remat = 'none'

  config.data = _data()

  config.train = ml_collections.ConfigDict()
  config.train.num_steps = 0  # updates; 0: from num_epochs
  config.train.num_epochs = 100
  config.train.batch_size = 256  # images an update, over all devices
  config.train.accumulate_steps = 1  # parts of a batch, computed in turn
  config.train.log_every_steps = 100
  config.train.eval_every_steps = 0  # 0: after each epoch; always at the end
  config.train.checkpoint_every_steps = 1000  # 0: after each epoch
  # Decay of the moving average of the variables, which is then what is
  # evaluated, e.g. 0.9999; 0: none.
  config.train.ema_decay = 0.0

  config.augment = ml_collections.ConfigDict()  # of batches, on the device
  config.augment.erasing_probability = 0.0
  config.augment.mixup_alpha = 0.0  # of Beta(alpha, alpha); 0: no mixup
  config.augment.cutmix_alpha = 0.0  # the same of CutMix
  config.augment.mix_probability = 1.0  # of either, where one is on
  config.augment.switch_probability = 0.5  # of CutMix, where both are
  # Images that share a draw; 0, or if it does not divide the batch: all of it.
  config.augment.mix_group_size = 0

  config.loss = ml_collections.ConfigDict()
  config.loss.label_smoothing = 0.1
  # 'others': the classes but the label share it, as in the official code;
  # 'all': all classes do, as in timm.
  config.loss.smooth_over = 'others'

  config.optim = _optim()

  config.eval = ml_collections.ConfigDict()
  config.eval.batch_size = 256  # over all devices

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.keep_latest = 2
  config.checkpoint.keep_best = 1  # by top-1, besides the latest

  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # devices; -1: all that mesh.model leaves
  # Devices over which parameters are spread; 1: each holds all of them.
  config.mesh.model = 1
  return config


def _data() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.name = 'imagenet2012'  # or 'folder', 'digits'
  config.dir = ''  # where the data set was prepared
  config.train_split = 'train'
  config.eval_split = 'validation'
  config.image_size = 224  # px
  config.eval_resize = 256  # px, short side before the central crop
  config.interpolation = 'bilinear'  # or 'bicubic'
  config.crop_scale = (0.08, 1.0)  # part of the area
  config.crop_ratio = (3 / 4, 4 / 3)  # width / height
  config.flip = 0.5  # probability
  # Random distortions of a training image; 0: no RandAugment.
  config.randaugment_operations = 0
  config.randaugment_magnitude = 9.0  # mean strength, 0 to 10
  config.randaugment_std = 0.5  # of the strength
  config.repeats = 1  # times an image is shown in a row in training
  config.mean = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
  config.std = (0.229, 0.224, 0.225)
  config.threads = 4  # that read ahead, in each worker
  config.workers = 0  # processes; 0 is best up to about 8 cores
  config.max_damaged = 100  # files a process skips before it gives up
  return config


def _optim() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.name = 'sgd'  # or 'adamw'
  config.learning_rate = 0.1
  # The rate is for this many images and scaled to the batch; 0: not scaled.
  config.reference_batch_size = 256
  # 'cosine', 'poly' or 'steps'; the formulas: acmix_jax/train/optim.py.
  config.schedule = 'cosine'
  config.end_learning_rate = 0.0
  config.power = 1.0  # of 'poly'
  # When 'steps' multiplies the rate by its factor, in epochs or in updates.
  config.milestone_epochs = ()
  config.milestone_steps = ()
  config.milestone_factor = 0.1
  # Linear warmup 'before_decay', 'over_decay' (the decay runs on beneath it, as
  # in timm) or 'times_decay' (it multiplies the decay, as in mmcv), in epochs
  # or in updates.
  config.warmup = 'before_decay'
  config.warmup_epochs = 5.0
  config.warmup_steps = 0
  config.warmup_start = 0.25  # first factor of the learning rate
  config.momentum = 0.9  # of sgd
  config.betas = (0.9, 0.999)  # of adamw
  config.epsilon = 1e-8  # of adamw
  config.weight_decay = 1e-4
  config.clip_norm = 0.0  # greatest norm of the gradient; 0: any
  # Parameters with other rules; their factors multiply. A recipe may add more.
  config.groups = ml_collections.ConfigDict()
  config.groups.no_decay = group(weight_decay=0.0)
  config.groups.frozen = group(frozen=True)
  return config


def group(
  pattern: str = '',
  *,
  learning_rate: float = 1.0,
  weight_decay: float = 1.0,
  frozen: bool = False,
) -> ml_collections.ConfigDict:
  """A group of parameters with rules of its own.

  Args:
    pattern: regular expression that matches the paths of the parameters, such
      as 'stage1_0/conv1/kernel', anywhere; '' matches none.
    learning_rate: factor of `optim.learning_rate`.
    weight_decay: factor of `optim.weight_decay`.
    frozen: whether the parameters never change.
  """
  return ml_collections.ConfigDict(
    {
      'pattern': pattern,
      'learning_rate': learning_rate,
      'weight_decay': weight_decay,
      'frozen': frozen,
    }
  )
