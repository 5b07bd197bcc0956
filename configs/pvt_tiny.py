r"""PVT-Tiny on ImageNet-1k: the baseline.

13,229,288 parameters, 1.93 G multiply-adds (224 x 224 pixels).
Published (README of whai362/PVT): top-1 75.1.
Not yet run to the end here.

python main.py --config=configs/pvt_tiny.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.pvt('pvt_tiny', stage_sizes=(2, 2, 2, 2))
