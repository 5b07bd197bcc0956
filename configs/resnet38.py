r"""ResNet-38 with 3x3 convolutions on ImageNet-1k: the baseline.

19,626,792 parameters, 3.22 G multiply-adds (224 x 224 pixels).
Published (README of hszhao/SAN): top-1 76.0.
Not yet run to the end here.

python main.py --config=configs/resnet38.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet38', stage_sizes=(2, 3, 5, 2))
