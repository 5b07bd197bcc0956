r"""RetinaNet on COCO 2017; the backbone is part of the argument.

Published box AP, val2017 (README of whai362/PVT detection/; mmdetection's
metafile): pvt_tiny 36.7, pvt_small 40.4, resnet50 36.5. 23.0 M, 34.2 M and
38.0 M parameters. The ACmix paper's own AP could not be obtained. Not yet run
to the end here.

python main.py --config=configs/coco_retinanet.py:resnet50_acmix \
  --workdir=DIR --config.data.dir=COCO2017 \
  --config.init_from=WORKDIR_OF_THE_CLASSIFIER [--config.model.dtype=bfloat16]
python main.py --config=configs/coco_retinanet.py:pvt_tiny,3x ...
"""

from acmix_jax.configs import coco


def get_config(arguments='resnet50_acmix'):
  """The recipe of 'BACKBONE' or 'BACKBONE,3x'."""
  return coco.retinanet(arguments)
