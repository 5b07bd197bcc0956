"""A value that cannot work is told by the name of the config's field."""

import re

import numpy as np
import pytest

from acmix_jax.data import transforms
from acmix_jax.data.transforms import classification, detection, segmentation
from configs import coco_mask_rcnn, scenes_semantic_fpn, swin_tiny

CLASSIFICATION = {
  'image_size': (0, -3),
  'crop_scale': ((0, 1), (0.5, 0.2), (0.5,), (0.5, 2.0)),
  'crop_ratio': ((0, 1),),
  'interpolation': ('nearest',),
  'flip': (1.5, -0.5),
  'randaugment_operations': (-1,),
  'randaugment_magnitude': (11.0,),
  'randaugment_std': (-1.0,),
}
SEGMENTATION = {
  'image_scale': ((0, 0), (3,), (2.5, 8)),
  'ratio_range': ((0.0, 1.0), (1.0,)),
  'crop_size': (0, -1),
  'max_category_share': (0.0, 1.5),
  'flip': (2.0,),
}
SEGMENTATION_EVAL = {
  'image_scale': ((0, 0), (3,)),
  'eval_ratios': ((), (0.0,), (float('nan'),)),
  'eval_multiple': (0,),
}
DETECTION = {
  'train_scales': ((), ((0, 1),), ((3,),)),
  'crop_scales': (((0, 3),),),
  'crop_range': ((0, 3), (5, 3), (1.5, 3)),
  'canvases': ((), ((0, 5),), ((5,),), ((5, 5),) * 3),
  'flip': (3.0,),
  'max_objects': (0,),
  'mask_size': (7, -8),
}
DETECTION_EVAL = {
  'eval_scale': ((0, 0), (3,)),
  'canvases': ((), ((0, 5),), ((5, 5),) * 3),
}


def _eval_canvases(data):
  return segmentation.eval_canvases(data, np.array([[40, 50]]))


@pytest.mark.parametrize(
  'make, config, fields',
  [
    (classification.train_transform, swin_tiny.get_config(), CLASSIFICATION),
    (
      classification.eval_transform,
      swin_tiny.get_config(),
      {'image_size': (0, -3), 'eval_resize': (0,), 'interpolation': ('x',)},
    ),
    (
      segmentation.train_transform,
      scenes_semantic_fpn.get_config(),
      SEGMENTATION,
    ),
    (_eval_canvases, scenes_semantic_fpn.get_config(), SEGMENTATION_EVAL),
    (
      detection.train_transform,
      coco_mask_rcnn.get_config('swin_tiny'),
      DETECTION,
    ),
    (
      detection.eval_transform,
      coco_mask_rcnn.get_config('swin_tiny'),
      DETECTION_EVAL,
    ),
  ],
  ids=[
    f'{split} {task}'
    for task in ('classification', 'segmentation', 'detection')
    for split in ('train', 'eval')
  ],
)
def test_errors_name_the_field_and_its_value(make, config, fields):
  whole = config.copy_and_resolve_references().data
  make(whole)
  for field, values in fields.items():
    for value in values:
      data = whole.copy_and_resolve_references()
      data[field] = value
      message = re.escape(f'data.{field}={value!r} is')
      with pytest.raises(ValueError, match=message):
        make(data)


def test_a_transform_of_its_own_names_its_field():
  with pytest.raises(ValueError, match='^size=0 is not a whole number'):
    transforms.ResizeShort(0)
