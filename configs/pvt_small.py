r"""PVT-Small on ImageNet-1k: the baseline.

24,485,864 parameters, 3.82 G multiply-adds (224 x 224 pixels).
Published (README of whai362/PVT): top-1 79.8.
Not yet run to the end here.

python main.py --config=configs/pvt_small.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.pvt('pvt_small', stage_sizes=(3, 4, 6, 3))
