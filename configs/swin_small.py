r"""Swin-Small on ImageNet-1k: the baseline.

49,606,258 parameters, 8.74 G multiply-adds (224 x 224 pixels).
Published (README of microsoft/Swin-Transformer): top-1 83.2.
Not yet run to the end here.

python main.py --config=configs/swin_small.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.swin('swin_small', stage_sizes=(2, 2, 18, 2), drop_path=0.3)
