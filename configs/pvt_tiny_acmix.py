r"""PVT-Tiny with ACmix on ImageNet-1k.

13,396,056 parameters, 2.00 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 78.0, 13 M and 2.0 G.
Not yet run to the end here.

The architecture is our reading, see acmix_jax/models/backbones/pvt.py.

python main.py --config=configs/pvt_tiny_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.pvt('pvt_tiny_acmix', stage_sizes=(2, 2, 2, 2))
