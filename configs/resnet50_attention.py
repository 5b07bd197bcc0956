r"""ResNet-50 with local self-attention on ImageNet-1k.

18,026,360 parameters, 3.34 G multiply-adds (224 x 224 pixels).
Published (read off figure/result.png of LeapLabTHU/ACmix): top-1 77.4.
Not yet run to the end here.

python main.py --config=configs/resnet50_attention.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.resnet('resnet50_attention', stage_sizes=(3, 4, 6, 3))
