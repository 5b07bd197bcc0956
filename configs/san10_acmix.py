r"""SAN-10 with ACmix on ImageNet-1k.

11,994,612 parameters, 1.89 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 77.6, 12.1 M and 1.9 G.
Not yet run to the end here.

The architecture is our reading, see acmix_jax/models/backbones/san.py.

python main.py --config=configs/san10_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.san('san10_acmix', stem_size=2, stage_sizes=(1, 2, 4, 1))
