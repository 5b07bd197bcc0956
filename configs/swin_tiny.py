r"""Swin-Tiny on ImageNet-1k: the baseline.

28,288,354 parameters, 4.49 G multiply-adds (224 x 224 pixels).
Published (README of microsoft/Swin-Transformer): top-1 81.2.
Not yet run to the end here.

python main.py --config=configs/swin_tiny.py --workdir=DIR \
  --config.data.dir=IMAGENET [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import imagenet


def get_config():
  """The recipe."""
  return imagenet.swin('swin_tiny', stage_sizes=(2, 2, 6, 2), drop_path=0.2)
