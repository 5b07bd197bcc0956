r"""SAN-15 with patchwise attention on ImageNet-1k: the baseline.

16,181,310 parameters, 2.48 G multiply-adds (224 x 224 pixels).
Published (README of hszhao/SAN): top-1 78.0.
Not yet run to the end here.

python main.py --config=configs/san15.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.san('san15', stem_size=3, stage_sizes=(2, 3, 5, 2))
