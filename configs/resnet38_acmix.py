r"""ResNet-38 with ACmix on ImageNet-1k.

14,410,896 parameters, 2.86 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 77.4, 14.6 M and 2.9 G.
Not yet run to the end here.

python main.py --config=configs/resnet38_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet38_acmix', stage_sizes=(2, 3, 5, 2))
