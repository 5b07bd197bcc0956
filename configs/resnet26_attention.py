r"""ResNet-26 with local self-attention on ImageNet-1k.

10,336,600 parameters, 2.13 G multiply-adds (224 x 224 pixels).
Published (read off figure/result.png of LeapLabTHU/ACmix): top-1 75.2.
Not yet run to the end here.

python main.py --config=configs/resnet26_attention.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet26_attention', stage_sizes=(1, 2, 4, 1))
