r"""SAN-15 with ACmix on ImageNet-1k.

16,414,134 parameters, 2.63 G multiply-adds (224 x 224 pixels).
Published (README of LeapLabTHU/ACmix): top-1 78.4, 16.6 M and 2.7 G.
Not yet run to the end here.

The architecture is our reading, see acmix_jax/models/backbones/san.py.

python main.py --config=configs/san15_acmix.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.san('san15_acmix', stem_size=3, stage_sizes=(2, 3, 5, 2))
