r"""ResNet-50 with 3x3 convolutions on ImageNet-1k: the baseline.

25,557,032 parameters, 4.09 G multiply-adds (224 x 224 pixels).
Published (README of hszhao/SAN): top-1 76.9.
Not yet run to the end here.

python main.py --config=configs/resnet50.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet50', stage_sizes=(3, 4, 6, 3))
