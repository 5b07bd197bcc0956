r"""ResNet-38 with local self-attention on ImageNet-1k.

14,181,480 parameters, 2.74 G multiply-adds (224 x 224 pixels).
Published (read off figure/result.png of LeapLabTHU/ACmix): top-1 77.0.
Not yet run to the end here.

python main.py --config=configs/resnet38_attention.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet38_attention', stage_sizes=(2, 3, 5, 2))
