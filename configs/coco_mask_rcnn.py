r"""Mask R-CNN on COCO 2017; the backbone is part of the argument.

Published box and mask AP, val2017 (README of whai362/PVT detection/ and of
Swin-Transformer-Object-Detection; mmdetection's metafile): pvt_tiny 36.7, 35.1;
pvt_small 40.4, 37.8; swin_tiny 43.7, 39.8, with 3x 46.0, 41.6; swin_small,3x
48.5, 43.3; resnet50 38.2, 34.7 (at a rate of 0.02). 32.9 M, 44.1 M, 47.8 M,
69.1 M and 44.4 M parameters. The ACmix paper's own AP could not be obtained.
Not yet run to the end here.

python main.py --config=configs/coco_mask_rcnn.py:swin_tiny_acmix \
  --workdir=DIR --config.data.dir=COCO2017 \
  --config.init_from=WORKDIR_OF_THE_CLASSIFIER [--config.model.dtype=bfloat16]
python main.py --config=configs/coco_mask_rcnn.py:swin_tiny_acmix,3x ...
"""

from acmix_jax.configs import coco


def get_config(arguments='swin_tiny_acmix'):
  """The recipe of 'BACKBONE' or 'BACKBONE,3x'."""
  return coco.mask_rcnn(arguments)
