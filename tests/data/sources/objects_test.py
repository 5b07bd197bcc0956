"""Drawn masks in the form of COCO."""

import numpy as np
from pycocotools import mask as coco_mask

from acmix_jax.data.sources import objects
from acmix_jax.data.transforms import masks


class Squares:
  """Image i shows i squares, of the sides 2, 3, ..."""

  origin = 'nowhere'

  def __len__(self):
    return 3

  def __getitem__(self, index):
    masks = np.zeros((index, 8, 12), bool)
    boxes = np.zeros((index, 4), np.float32)
    for k in range(index):
      masks[k, 1 : 3 + k, 2 : 4 + k] = True
      boxes[k] = 2, 1, 4 + k, 3 + k
    return {
      'image': np.zeros((8, 12, 3), np.uint8),
      'label_map': np.zeros((8, 12), np.uint8),
      'boxes': boxes,
      'labels': np.arange(index, dtype=np.int32),
      'masks': masks,
      'name': f'squares/{index}',
    }

  def blank(self, index):
    return {**self[0], 'name': ''}


def test_examples_and_their_ground_truth():
  source = objects.Objects(Squares(), ['small', 'large'])
  assert (len(source), source.num_classes) == (3, 2)
  example = source[2]
  assert example.keys() == {
    *('image', 'boxes', 'labels', 'masks', 'name', 'image_id'),
  }
  assert example['image_id'] == 2
  assert source.blank(1)['image_id'] == -1
  packed = source.annotations
  assert packed.trainable.all()
  truth = packed.to_coco()
  assert [image['id'] for image in truth['images']] == [0, 1, 2]
  assert truth['categories'] == [
    {'id': 0, 'name': 'small'},
    {'id': 1, 'name': 'large'},
  ]
  last = truth['annotations'][2]
  assert (last['image_id'], last['category_id'], last['area']) == (2, 1, 9)
  assert last['bbox'] == [2, 1, 3, 3]
  np.testing.assert_array_equal(
    coco_mask.decode(last['segmentation']), example['masks'][1]
  )
  drawn = masks.Masks([packed.segmentation(2)], 8, 12)
  np.testing.assert_array_equal(np.asarray(drawn)[0], example['masks'][1])
