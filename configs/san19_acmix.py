r"""SAN-19 with ACmix on ImageNet-1k.

20,829,278 parameters, 3.32 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 78.7, 21.2 M and 3.4 G.
Not yet run to the end here.

The architecture is our reading, see acmix_jax/models/backbones/san.py.

python main.py --config=configs/san19_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.san('san19_acmix', stem_size=3, stage_sizes=(3, 4, 6, 3))
