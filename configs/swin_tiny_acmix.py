r"""Swin-Tiny with ACmix on ImageNet-1k.

28,649,908 parameters, 4.65 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 81.9, 30 M and 4.6 G.
Not yet run to the end here.

python main.py --config=configs/swin_tiny_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.swin(
    'swin_tiny_acmix', stage_sizes=(2, 2, 6, 2), drop_path=0.2
  )
