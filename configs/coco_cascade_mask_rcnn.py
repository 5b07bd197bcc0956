r"""Cascade Mask R-CNN on COCO 2017; the backbone is part of the argument.

Published box and mask AP, val2017 (README of Swin-Transformer-Object-
Detection): swin_tiny 48.1, 41.7, with 3x 50.4, 43.7; swin_small,3x 51.9, 45.0.
85.6 M and 106.9 M parameters. The ACmix paper's own AP could not be obtained.
Not yet run to the end here.

python main.py --config=configs/coco_cascade_mask_rcnn.py:swin_tiny_acmix,3x \
  --workdir=DIR --config.data.dir=COCO2017 \
  --config.init_from=WORKDIR_OF_THE_CLASSIFIER [--config.model.dtype=bfloat16]
"""

from acmix_jax.configs import coco


def get_config(arguments='swin_tiny_acmix'):
  """The recipe of 'BACKBONE' or 'BACKBONE,3x'."""
  return coco.cascade_mask_rcnn(arguments)
