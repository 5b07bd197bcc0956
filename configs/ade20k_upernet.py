r"""UperNet on ADE20K; the backbone is the argument.

Published mIoU, one scale (README of Swin-Transformer-Semantic-Segmentation):
swin_tiny 44.5, swin_small 47.6; with several scales and mirrored images 45.8
and 49.5. 60 M and 81 M parameters, 945 and 1038 G multiply-adds (512 x 2048
pixels). The ACmix paper's own mIoU could not be obtained. Not yet run to the
end here.

python main.py --config=configs/ade20k_upernet.py:swin_tiny_acmix \
  --workdir=DIR --config.data.dir=ADEChallengeData2016 \
  --config.init_from=WORKDIR_OF_THE_CLASSIFIER [--config.model.dtype=bfloat16]

As the source evaluates, at exact sizes, each of which is compiled:
  --mode=eval --config.data.eval_multiple=1
"""

from acmix_jax.configs import ade20k


def get_config(backbone='swin_tiny_acmix'):
  """The recipe."""
  return ade20k.upernet(backbone)
