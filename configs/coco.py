"""The recipes for COCO 2017 (80 classes of things), one a detector.

Each field is listed once, the backbone's too: any can be set on the command
line. Arguments are 'BACKBONE' or 'BACKBONE,SCHEDULE':

  1x: 12 epochs of 16 images, the rate divided by 10 after 8 and 11;
  3x: 36 epochs, after 27 and 33, and images of several sizes and crops.

The sources train PVT (RetinaNet and Mask R-CNN, 1x) and Swin (Mask R-CNN and
its cascade); ResNet and SAN are trained as the ACmix paper's supplement says.
What no source trains has the optimiser of its backbone's family.
"""

import ml_collections

from acmix_jax.configs import backbones, common

_SCHEDULES = ('1x', '3x')

# Norms of the backbone and Swin's tables of relative positions; biases, ACmix's
# weights and the heads' norms do decay.
_SWIN_NO_DECAY = r'^backbone/.*(norm|(operator|attention)/bias$)'


def retinanet(arguments: str) -> ml_collections.ConfigDict:
  """RetinaNet: boxes alone.

  Source: detection/ of whai362/PVT and the base files of mmdetection 2.

  Args:
    arguments: see the head of this file.

  Raises:
    ValueError: an unknown backbone or schedule.
  """
  config = _detection('retinanet', arguments)
  config.model.head_depth = 4  # convolutions of the head before its outputs
  # Pairs of an anchor and a class of a level that may become detections.
  config.model.pre_nms = 1000
  config.data.mask_size = 0
  return config


def mask_rcnn(arguments: str) -> ml_collections.ConfigDict:
  """Mask R-CNN: boxes and masks.

  Source: detection/ of whai362/PVT, and configs/swin/ of
  SwinTransformer/Swin-Transformer-Object-Detection.

  Args:
    arguments: see the head of this file.

  Raises:
    ValueError: an unknown backbone or schedule.
  """
  config = _two_stages('mask_rcnn', arguments)
  if backbones.family(config.model.backbone) == 'pvt':
    config.optim.learning_rate = 2e-4
  return config


def cascade_mask_rcnn(arguments: str) -> ml_collections.ConfigDict:
  """Cascade Mask R-CNN: three stages, each of which refines the boxes.

  Source: configs/swin/ of SwinTransformer/Swin-Transformer-Object-Detection.

  Args:
    arguments: see the head of this file.

  Raises:
    ValueError: an unknown backbone or schedule.
  """
  config = _two_stages('cascade_mask_rcnn', arguments)
  family = backbones.family(config.model.backbone)
  if family == 'pvt':
    config.optim.learning_rate = 2e-4
  elif family == 'swin' and config.train.num_epochs == 12:
    config.model.drop_path = 0.0
  model = config.model
  model.box_convs, model.box_dense, model.box_loss = 4, 1, 'giou'
  model.rpn_beta, model.rpn_border = 1 / 9, 0.0
  model.train_proposals = 2000
  return config


def _two_stages(head: str, arguments: str) -> ml_collections.ConfigDict:
  """What detectors with regions have, with the values of Mask R-CNN."""
  config = _detection(head, arguments)
  model = config.model
  model.box_convs = 0  # convolutions of a box head, with norms
  model.box_dense = 2  # fully connected layers after these
  model.box_hidden = 1024  # features of these layers
  model.box_loss = 'l1'  # of the deltas of boxes, or 'giou' of the boxes
  # Norms of the box heads: 'batch', 'running' or 'frozen', as `batch_norm`.
  model.box_norm = 'batch'
  model.mask_depth = 4  # convolutions of a mask head before its upsampling
  model.rpn_beta = 0.0  # where the square of smooth L1 ends; 0: L1
  # Pixels by which anchors that are learnt may stand out of the image; None:
  # any.
  model.rpn_border = ml_collections.config_dict.placeholder(float)
  model.rpn_samples = 256  # anchors of an image that are learnt
  model.region_samples = 512  # regions of an image that a stage learns
  # Anchors of a level that may become proposals, and proposals of an image.
  model.train_pre_nms, model.train_proposals = 2000, 1000  # in training
  model.pre_nms, model.num_proposals = 1000, 1000
  # Pixels up to twice of which the side of a region is on the finest level.
  model.finest_side = 56.0
  # Cells of the side of a mask on its way to the device, 8 to the byte; larger
  # objects lose single pixels of their outlines.
  config.data.mask_size = 112
  return config


def _detection(head: str, arguments: str) -> ml_collections.ConfigDict:
  """What every detector has."""
  backbone, schedule = _parse(arguments)
  config = common.base('detection')
  config.model = backbones.model(head, backbone, num_classes=80)
  _add_detector(config.model)
  _add_data(config.data)
  config.train.batch_size = 16
  config.train.num_epochs = 12
  config.eval.batch_size = 16
  # JSON file for the detections of the last evaluation, as COCO's server takes
  # them; '': none.
  config.eval.results_file = ''

  optim = config.optim
  optim.reference_batch_size = 16
  optim.schedule = 'steps'
  optim.milestone_epochs = (8, 11)
  optim.warmup = 'times_decay'
  optim.warmup_epochs = 0.0
  optim.warmup_steps = 500
  optim.warmup_start = 1e-3
  family = backbones.family(backbone)
  if family in ('resnet', 'san'):
    _train_by_sgd(config)
  else:
    config.model.drop_path = 0.1
    optim.name = 'adamw'
    optim.learning_rate = 1e-4
    optim.weight_decay = 1e-4
  if family == 'swin':
    optim.weight_decay = 0.05
    optim.groups.no_decay.pattern = _SWIN_NO_DECAY
    _add_sizes(config.data)
  if schedule == '3x':
    config.train.num_epochs = 36
    optim.milestone_epochs = (27, 33)
    _add_sizes(config.data)
    if family == 'swin':
      config.model.drop_path = 0.2
  return config


def _parse(arguments: str) -> tuple[str, str]:
  """Backbone and schedule."""
  backbone, _, schedule = arguments.partition(',')
  schedule = schedule or _SCHEDULES[0]
  if schedule not in _SCHEDULES:
    raise ValueError(
      f'Schedule {schedule!r} of {arguments!r} is unknown. Known: '
      f'{backbone + ",1x"!r}, 12 epochs, and {backbone + ",3x"!r}, 36 epochs '
      'of images of several sizes.'
    )
  return backbone, schedule


def _add_detector(model: ml_collections.ConfigDict) -> None:
  """Fields that all detectors share."""
  model.neck_features = 256  # channels of the pyramid and of the heads on it
  # Neighbours of a batch whose losses are divided by one count, as those on one
  # GPU of the sources; 0: the whole batch.
  model.images_per_group = 2
  # The sides of a padded image are multiples of it: anchors end there.
  model.size_divisor = 32
  # Whether anchors between an image's own padding and the end of its canvas
  # detect, too. mmdetection evaluates one image at a time: there are none.
  model.padding_anchors = False
  model.score_threshold = 0.05  # what the score of a detection exceeds
  model.nms_threshold = 0.5  # largest overlap of two detections of a class
  model.max_detections = 100  # of an image


def _add_data(data: ml_collections.ConfigDict) -> None:
  """COCO 2017 as it is unpacked, and the pipeline of one size."""
  data.name = 'coco'  # any data in COCO format; or 'scene_objects'
  # Files and folders, relative to data.dir.
  data.train_annotations = 'annotations/instances_train2017.json'
  data.train_images = 'train2017'
  data.eval_annotations = 'annotations/instances_val2017.json'
  data.eval_images = 'val2017'
  # Whether images without annotations are trained on.
  data.train_empty_images = False
  # Longer and shorter side, in pixels, within which an image is resized; of
  # several one is drawn.
  data.train_scales = ((1333, 800),)
  data.eval_scale = (1333, 800)
  # First scales of every second image, which is then cropped and resized; ():
  # none is cropped.
  data.crop_scales = ()
  data.crop_range = (384, 600)  # sides of the crops, in pixels
  data.flip = 0.5  # probability
  # Height and width of the padded images: of wide ones, and of the others. The
  # update is compiled once for each.
  data.canvases = ((800, 1344), (1344, 800))
  data.max_objects = 100  # of an image; of more the largest are learnt


def _add_sizes(data: ml_collections.ConfigDict) -> None:
  """Images of several sizes, half of them crops, as Swin's detectors learn."""
  data.train_scales = tuple((1333, side) for side in range(480, 801, 32))
  data.crop_scales = ((4200, 400), (4200, 500), (4200, 600))


def _train_by_sgd(config: ml_collections.ConfigDict) -> None:
  """As the supplement of the paper trains ResNet and SAN.

  Momentum, decay, and what of the backbone is trained, which it leaves out, are
  those of mmdetection's ResNet-50.
  """
  config.model.frozen_stages = 1
  config.model.batch_norm = 'running'
  config.optim.name = 'sgd'
  config.optim.learning_rate = 0.01
  config.optim.momentum = 0.9
  config.optim.weight_decay = 1e-4
