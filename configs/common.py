"""What every run has, whatever its task and model.

The values are those of a ResNet on ImageNet; recipes replace them.
"""

import ml_collections


def base(task: str) -> ml_collections.ConfigDict:
  """Every field that the training loop and the data pipeline read.

  A recipe adds `model`, what else its task reads, and the transforms in `data`.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0  # initial weights, order of the data, augmentation
  config.task = task
  # Start: a workdir, one of its checkpoints or converted weights
  # (.safetensors); '': random weights.
  config.init_from = ''
  # Whether a checkpoint that has moving averages gives these to init_from and
  # --mode=eval, and not the variables that the last update left.
  config.load_average = True
  # How a model with ACmix starts from one without: 'exact': as the same
  # function; 'nearest': as near as 3x3 convolutions allow; '': it does not.
  config.init_acmix = ''
  # First weight of the path (alpha or beta) that the model without ACmix lacks.
  config.init_acmix_weight = 0.0

  config.data = _data()

  config.train = ml_collections.ConfigDict()
  config.train.num_steps = 0  # updates; 0: from num_epochs
  config.train.num_epochs = 100
  config.train.batch_size = 256  # images of an update, over all devices
  config.train.accumulate_steps = 1  # parts of a batch, computed in turn
  config.train.log_every_steps = 100
  config.train.eval_every_steps = 0  # 0: after each epoch; always at the end
  config.train.checkpoint_every_steps = 1000  # 0: after each epoch
  # Decay of the variables' moving average, which is evaluated then, such as
  # 0.9999; 0: no average.
  config.train.ema_decay = 0.0

  config.optim = _optim()

  config.eval = ml_collections.ConfigDict()
  config.eval.batch_size = 256  # images, over all devices

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.keep_latest = 2
  config.checkpoint.keep_best = 1  # best evaluations, besides the latest

  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # devices; -1: all that mesh.model leaves
  # Devices over which parameters are spread; 1: each holds all of them.
  config.mesh.model = 1
  return config


def _data() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.name = 'imagenet2012'  # or 'folder', 'digits'
  config.dir = ''  # folder of the prepared data set
  config.train_split = 'train'
  config.eval_split = 'validation'
  config.repeats = 1  # consecutive showings of an image in training
  config.mean = (0.485, 0.456, 0.406)  # mean of RGB in [0, 1]
  config.std = (0.229, 0.224, 0.225)  # standard deviation of the same
  config.threads = 4  # reading threads of each worker
  config.workers = 0  # processes; 0 is best up to about 8 cores
  config.max_damaged = 100  # files that a process skips before it gives up
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
