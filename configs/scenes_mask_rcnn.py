"""A small Mask R-CNN with ACmix on scenes of scikit-learn's digits.

Nothing to download: photographs with one to three handwritten digits on them,
composed as they are read. Run here: box AP50 95.9 % and mask AP50 95.0 % after
750 updates, in 274 s on two cores with compilation. 1,531,230 parameters.

python main.py --config=configs/scenes_mask_rcnn.py --workdir=DIR
"""

from acmix_jax.configs import coco, scenes_detection


def get_config():
  """The recipe."""
  config = coco.mask_rcnn('resnet26_acmix')
  scenes_detection.adapt(config)
  config.model.box_hidden = 256
  config.model.mask_depth = 1
  config.model.rpn_samples = 64
  config.model.region_samples = 16
  config.model.train_pre_nms = 100
  config.model.train_proposals = 32
  config.model.pre_nms = 50
  config.model.num_proposals = 30
  config.model.max_detections = 20
  config.data.mask_size = 48
  config.train.num_steps = 750
  return config
