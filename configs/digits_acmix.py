r"""A small ACmix ResNet on the handwritten digits of scikit-learn.

Nothing to download: 1,433 images of 8 x 8 pixels, enlarged.

python main.py --config=configs/digits_acmix.py --workdir=/tmp/digits
"""

from configs import common


def get_config():
  """The recipe."""
  config = common.resnet_imagenet('resnet26_acmix')
  config.model.num_classes = 10
  config.model.stage_sizes = (1, 1, 1)
  config.model.width = 16
  config.model.stem = 'small'
  config.model.num_heads = 2
  config.model.kernel_att = 5
  # On a CPU several times as fast as the default, one grouped convolution.
  config.model.convolution_implementation = 'shifts'

  config.data.name = 'digits'
  config.data.image_size = 16
  config.data.eval_resize = 16
  config.data.crop_scale = (0.7, 1.0)
  config.data.flip = 0.0  # a mirrored digit is another sign

  config.train.num_epochs = 15
  config.train.batch_size = 64
  config.train.log_every_steps = 20
  config.train.eval_every_steps = 110  # five epochs
  config.train.checkpoint_every_steps = 110

  config.optim.learning_rate = 0.1
  config.optim.reference_batch_size = 64
  config.optim.warmup_epochs = 2.0
  config.eval.batch_size = 64
  return config
