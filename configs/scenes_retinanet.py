"""A small RetinaNet with ACmix on scenes of scikit-learn's digits.

Nothing to download: photographs with one to three handwritten digits on them,
composed as they are read. Run here: box AP50 90.1 % after 1,000 updates, in
205 s on two cores with compilation. 1,064,464 parameters.

python main.py --config=configs/scenes_retinanet.py --workdir=DIR
"""

from acmix_jax.configs import coco, scenes_detection


def get_config():
  """The recipe."""
  config = coco.retinanet('resnet26_acmix')
  scenes_detection.adapt(config)
  config.model.head_depth = 2
  config.model.pre_nms = 100
  config.model.max_detections = 20
  return config
