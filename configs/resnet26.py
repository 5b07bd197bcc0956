r"""ResNet-26 with 3x3 convolutions on ImageNet-1k: the baseline.

13,696,552 parameters, 2.34 G multiply-adds (224 x 224 pixels).
Published (README of hszhao/SAN): top-1 73.6.
Not yet run to the end here.

python main.py --config=configs/resnet26.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet26', stage_sizes=(1, 2, 4, 1))
