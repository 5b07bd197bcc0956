r"""PVT-Small with ACmix on ImageNet-1k.

24,824,611 parameters, 3.95 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 81.7, 25 M and 3.9 G.
Not yet run to the end here.

The architecture is our reading, see acmix_jax/models/backbones/pvt.py.

python main.py --config=configs/pvt_small_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.pvt('pvt_small_acmix', stage_sizes=(3, 4, 6, 3))
