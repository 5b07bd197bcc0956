r"""ResNet-26 with ACmix on ImageNet-1k.

10,487,816 parameters, 2.22 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 76.1, 10.6 M and 2.3 G.
Not yet run to the end here.

python main.py --config=configs/resnet26_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet26_acmix', stage_sizes=(1, 2, 4, 1))
