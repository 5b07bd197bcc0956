r"""Semantic FPN on ADE20K; the backbone is part of the argument.

Published mIoU, one scale (README of whai362/PVT segmentation/; first the paper,
then its released code, which is the schedule 'release' here): pvt_tiny 35.7,
36.6; pvt_small 39.8, 41.9. 17.0 M and 28.2 M parameters, 33.2 and 44.5 G
multiply-adds (512 x 512 pixels). The ACmix paper's own mIoU could not be
obtained. Not yet run to the end here.

python main.py --config=configs/ade20k_semantic_fpn.py:pvt_tiny_acmix \
  --workdir=DIR --config.data.dir=ADEChallengeData2016 \
  --config.init_from=WORKDIR_OF_THE_CLASSIFIER [--config.model.dtype=bfloat16]
python main.py --config=configs/ade20k_semantic_fpn.py:pvt_tiny,release ...
"""

from acmix_jax.configs import ade20k


def get_config(arguments='pvt_tiny_acmix'):
  """The recipe of 'BACKBONE' or 'BACKBONE,release'."""
  return ade20k.semantic_fpn(*arguments.split(','))
