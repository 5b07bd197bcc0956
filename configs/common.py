"""Complete recipes of the model families; every field of a config is here."""

import ml_collections


def resnet_imagenet(name: str) -> ml_collections.ConfigDict:
  """ResNet-26/38/50 on ImageNet-1k, 100 epochs of 256 images.

  Source: the paper where it says so, else the defaults of the official
  ResNet/main.py.
  """
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
  # Groups of the batch with batch statistics of their own. 1: the whole batch
  # shares them; 8: as the paper's 8 GPUs of 32 images.
  config.model.norm_groups = 1

  config.data = ml_collections.ConfigDict()
  config.data.name = 'imagenet2012'  # or 'folder', 'digits'
  config.data.dir = ''  # where the data set was prepared
  config.data.train_split = 'train'
  config.data.eval_split = 'validation'
  config.data.image_size = 224  # px
  config.data.eval_resize = 256  # px, short side before the central crop
  config.data.interpolation = 'bilinear'  # or 'bicubic'
  config.data.crop_scale = (0.08, 1.0)  # part of the area
  config.data.crop_ratio = (3 / 4, 4 / 3)  # width / height
  config.data.flip = 0.5  # probability
  config.data.mean = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
  config.data.std = (0.229, 0.224, 0.225)
  config.data.threads = 4  # that read ahead, in each worker
  config.data.workers = 0  # processes; 0 is best up to about 8 cores
  config.data.max_damaged = 100  # files a process skips before it gives up

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

  config.loss = ml_collections.ConfigDict()
  config.loss.label_smoothing = 0.1
  # 'others': the classes but the label share it, as in the official code;
  # 'all': all classes do, as in timm.
  config.loss.smooth_over = 'others'

  config.optim = ml_collections.ConfigDict()
  config.optim.name = 'sgd'  # or 'adamw'
  config.optim.learning_rate = 0.1
  # The rate is for this many images and scaled to the batch; 0: not scaled.
  config.optim.reference_batch_size = 256
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 5.0
  config.optim.warmup_start = 0.25  # of the learning rate
  config.optim.end_learning_rate = 0.0
  config.optim.momentum = 0.9  # of sgd
  config.optim.betas = (0.9, 0.999)  # of adamw
  config.optim.epsilon = 1e-8  # of adamw
  config.optim.weight_decay = 1e-4
  # Regular expressions of parameter paths that do not decay; here all decay.
  config.optim.no_decay = ()
  config.optim.clip_norm = 0.0  # greatest norm of the gradient; 0: any

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
