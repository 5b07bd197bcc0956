r"""ResNet-50 with ACmix on ImageNet-1k.

18,333,976 parameters, 3.50 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 77.8, 18.6 M and 3.6 G.
Not yet run to the end here.

python main.py --config=configs/resnet50_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet50_acmix', stage_sizes=(3, 4, 6, 3))
