r"""Swin-Small with ACmix on ImageNet-1k.

50,345,080 parameters, 8.99 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 83.5, 51 M and 9.0 G.
Not yet run to the end here.

python main.py --config=configs/swin_small_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.swin(
    'swin_small_acmix', stage_sizes=(2, 2, 18, 2), drop_path=0.3
  )
