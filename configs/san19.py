r"""SAN-19 with patchwise attention on ImageNet-1k: the baseline.

20,518,470 parameters, 3.13 G multiply-adds (224 x 224 pixels).
Published (README of hszhao/SAN): top-1 78.2.
Not yet run to the end here.

python main.py --config=configs/san19.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.san('san19', stem_size=3, stage_sizes=(3, 4, 6, 3))
