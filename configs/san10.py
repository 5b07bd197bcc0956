r"""SAN-10 with patchwise attention on ImageNet-1k: the baseline.

11,841,124 parameters, 1.79 G multiply-adds (224 x 224 pixels).
Published (README of hszhao/SAN): top-1 77.1.
Not yet run to the end here.

python main.py --config=configs/san10.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.san('san10', stem_size=2, stage_sizes=(1, 2, 4, 1))
