"""Every config: parameters, and the whole update at its real size."""

import importlib
import pathlib
import re

import chex
import jax
import pytest

from acmix_jax import models
from acmix_jax.train import build
from acmix_jax.train import mesh as mesh_lib

SHARED = {
  *('__init__', 'backbones', 'common'),
  *('ade20k', 'coco', 'imagenet', 'scenes_detection'),
}
CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'

# Of the official models (those of attention by the closed form: without the
# 27 n + 81 c + 2 parameters of the convolution path of each block).
PARAMETERS = {
  'digits_acmix': 390_300,
  'scenes_semantic_fpn': 578_381,
  'resnet26': 13_696_552,
  'resnet38': 19_626_792,
  'resnet50': 25_557_032,
  'resnet26_attention': 10_336_600,
  'resnet38_attention': 14_181_480,
  'resnet50_attention': 18_026_360,
  'resnet26_acmix': 10_487_816,
  'resnet38_acmix': 14_410_896,
  'resnet50_acmix': 18_333_976,
  'san10': 11_841_124,
  'san15': 16_181_310,
  'san19': 20_518_470,
  'pvt_tiny': 13_229_288,
  'pvt_small': 24_485_864,
  'swin_tiny': 28_288_354,
  'swin_small': 49_606_258,
  'swin_tiny_acmix': 28_649_908,
  'swin_small_acmix': 50_345_080,
  # Of no official model: a block has the 54 + 81 c parameters (SAN) or the
  # 27 n + 81 c (PVT) of its convolution path and two weights more.
  'san10_acmix': 11_994_612,
  'san15_acmix': 16_414_134,
  'san19_acmix': 20_829_278,
  'pvt_tiny_acmix': 13_396_056,
  'pvt_small_acmix': 24_824_611,
  # On pvt_tiny_acmix and swin_tiny_acmix.
  'ade20k_semantic_fpn': 17_148_166,
  'ade20k_upernet': 60_303_416,
  # On resnet50_acmix and swin_tiny_acmix: backbone, neck and heads of the
  # official models.
  'coco_retinanet': 30_745_636,
  'coco_mask_rcnn': 48_156_156,
  'coco_cascade_mask_rcnn': 85_991_358,
  'scenes_retinanet': 1_064_464,
  'scenes_mask_rcnn': 1_531_230,
}
METRICS = {
  'classification': {'top1', 'top5'},
  'segmentation': {'pixel_accuracy', 'head_loss', 'auxiliary_loss'},
  'detection': {
    f'{stage}{name}'
    for stage in ('', 's0.', 's1.', 's2.')
    for name in ('loss_cls', 'loss_bbox', 'loss_mask', 'acc')
  }
  | {'loss_rpn_cls', 'loss_rpn_bbox'},
}


def _names():
  names = {path.stem for path in CONFIGS.glob('*.py')}
  return sorted(names - SHARED)


def _config(name):
  config = importlib.import_module(f'configs.{name}').get_config()
  return config.lock()


def test_every_config_has_a_row_and_every_model_a_config():
  assert set(_names()) == set(PARAMETERS)
  assert set(models.list_models()) <= set(_names())


# Deeper ones of a family, or of a head that a smaller one has, too; and those
# whose variant with ACmix is here.
SLOW = re.compile(
  '.*(38|50|15|19|small|cascade|coco_retina|20k_semantic).*'
  '|(resnet26|san10|pvt_tiny|swin_tiny)$'
)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * bool(SLOW.match(name)))
    for name in _names()
  ],
)
def test_update_at_real_size_has_the_known_parameters(name):
  config = _config(name)
  mesh = mesh_lib.make_mesh(config.mesh)
  training = build.Training(config, mesh, steps_per_epoch=100)
  before = training.state_shapes
  batch, *_ = training.task.batch_shapes('train')
  after, metrics = jax.eval_shape(training.update, before, batch)

  count = sum(leaf.size for leaf in jax.tree.leaves(before.params))
  assert count == PARAMETERS[name]
  chex.assert_trees_all_equal_shapes_and_dtypes(after, before)
  assert {'loss', 'grad_norm'} < set(metrics)
  assert set(metrics) <= {'loss', 'grad_norm'} | METRICS[config.task]
  assert all(m.shape == () and m.dtype == 'float32' for m in metrics.values())


def test_configs_name_their_own_model():
  for name in models.list_models():
    assert _config(name).model.name == name
