"""Neck and heads against mmsegmentation's."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from acmix_jax.nn.heads import fpn, segmentation
from acmix_jax.ops import resize
from acmix_jax.weights.tables import segmentation as table
from tests.fixtures import official

IGNORED = 255


class Heads(nn.Module):
  """What a segmenter has on its backbone."""

  head: segmentation.SegmentationHead
  neck: fpn.FPN | None = None
  auxiliary: segmentation.FCNHead | None = None

  def __call__(self, maps, *, train):
    logits = {'logits': self.head(self.pyramid(maps), train=train)}
    if self.auxiliary is not None:
      logits['aux_logits'] = self.auxiliary(maps[2], train=train)
    return logits

  def pyramid(self, maps):
    return maps if self.neck is None else self.neck(maps)


def heads(config):
  """The module of a configuration."""
  head = config['decode_head']
  fields = head['num_classes'], head['channels'], head['dropout_ratio']
  if 'neck' in config:
    neck = fpn.FPN(config['neck']['out_channels'])
    return Heads(segmentation.SemanticFPNHead(*fields), neck)
  auxiliary = config['auxiliary_head']
  return Heads(
    segmentation.UPerHead(*fields, bins=tuple(head['pool_scales'])),
    auxiliary=segmentation.FCNHead(
      auxiliary['num_classes'], auxiliary['channels'], dropout=0.0
    ),
  )


@functools.cache
def reference(name):
  """Arrays, module, variables in our names and the maps."""
  config, arrays = official.segmentation_heads(name)
  module, maps = heads(config), [arrays[f'feature/{i}'] for i in range(4)]
  shapes = jax.eval_shape(
    lambda maps: module.init(jax.random.key(0), maps, train=False), maps
  )
  variables = convert(arrays, 'param', shapes)
  return arrays, module, variables, maps


def convert(arrays, kind, variables):
  return official.convert(arrays, kind, variables, table.TABLE, '', '')


def loss(logits, label):
  """Cross-entropies at the label's size, summed over valid pixels."""
  logits = resize.bilinear(logits, label.shape[1:])
  valid = label != IGNORED
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, jnp.where(valid, label, 0)
  )
  return jnp.where(valid, losses, 0).sum()


@pytest.mark.parametrize('name', ['fpn_odd', 'uper_odd', 'uper_pool5x7'])
def test_evaluation_equals_the_official_heads(name):
  arrays, module, variables, maps = reference(name)
  logits = jax.jit(functools.partial(module.apply, train=False))(
    variables, maps
  )
  for key, value in logits.items():
    official.assert_relative(value, arrays[f'eval/{key}'], name=key)


def test_the_neck_equals_the_official_one():
  arrays, module, variables, maps = reference('fpn_odd')
  levels = jax.jit(functools.partial(module.apply, method='pyramid'))(
    variables, maps
  )
  for i, level in enumerate(levels):
    official.assert_relative(level, arrays[f'eval/neck/{i}'])


@pytest.mark.parametrize('name', ['uper_odd', 'uper_pool5x7'])
def test_the_pyramid_pooling_equals_the_official_one(name):
  arrays, module, variables, maps = reference(name)
  head = module.head
  pooling = segmentation.PyramidPooling(head.features, head.bins)
  x = jnp.asarray(maps[-1])

  @jax.jit
  def run(variables):
    return (
      [resize.adaptive_average_pool(x, bins) for bins in head.bins],
      [
        resize.bilinear(grid, x.shape[1:3])
        for grid in pooling.apply(variables, x, train=False, method='grids')
      ],
      pooling.apply(variables, x, train=False),
    )

  pooled, grids, out = run(
    {kind: part['head']['pooling'] for kind, part in variables.items()}
  )
  for i, bins in enumerate(head.bins):
    official.assert_relative(pooled[i], arrays[f'eval/pooled/{bins}'])
    official.assert_relative(grids[i], arrays[f'eval/ppm/{bins}'])
  official.assert_relative(out, arrays['eval/psp'])


@pytest.mark.parametrize('name', ['fpn_odd', 'uper_odd', 'uper_pool5x7'])
def test_training_equals_the_official_heads(name):
  arrays, module, variables, maps = reference(name)
  label = arrays['label']
  weights = {'logits': 1.0, 'aux_logits': 0.4}

  def total(params, maps):
    logits, state = module.apply(
      {**variables, 'params': params},
      maps,
      train=True,
      mutable=['batch_stats'],
    )
    losses = {
      key: weights[key] * loss(x, label) / label.size
      for key, x in logits.items()
    }
    return sum(losses.values()), (logits, losses, state)

  gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  (value, (logits, losses, state)), (to_params, to_maps) = gradient(
    variables['params'], maps
  )
  for key, x in logits.items():
    official.assert_relative(x, arrays[f'train/{key}'], name=key)
  official.assert_relative(
    resize.bilinear(logits['logits'], label.shape[1:]),
    arrays['train/logits_at_label_size'],
  )
  share = label.size / (label != IGNORED).sum()
  for kind, got in {
    'decode': losses['logits'],
    'aux': losses.get('aux_logits'),
    'total': value,
  }.items():
    if got is not None:
      want = arrays[f'loss/mean_all/{kind}'], arrays[f'loss/mean_valid/{kind}']
      np.testing.assert_allclose((got, got * share), want, rtol=1e-5)

  for i, got in enumerate(to_maps):
    official.assert_relative(got, arrays[f'grad_feature/{i}'])
  want = convert(arrays, 'grad', {'params': to_params})['params']
  want = traverse_util.flatten_dict(want, sep='/')
  for path, got in traverse_util.flatten_dict(to_params, sep='/').items():
    if path.startswith('head/pooling/grid0/'):
      # Two values are normalised to +-1 whatever they are: gradients are what
      # the epsilon leaves.
      np.testing.assert_allclose(got, want[path], atol=1e-5, err_msg=path)
    else:
      official.assert_relative(got, want[path], name=path)

  want = convert(arrays, 'after', state)
  chex.assert_trees_all_equal_structs(state, want)
  jax.tree.map(official.assert_relative, state, want)


def test_dropout_drops_whole_channels_before_the_last_layer():
  head = segmentation.FCNHead(num_classes=6, features=400, dropout=0.25)
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  variables = head.init(jax.random.key(1), x, train=False)
  _, state = head.apply(
    variables,
    x,
    train=True,
    rngs={'dropout': jax.random.key(2)},
    capture_intermediates=True,
    mutable=['intermediates', 'batch_stats'],
  )
  before, after = (
    np.asarray(state['intermediates'][name]['__call__'][0])
    for name in ('conv', 'drop')
  )
  dropped = (after == 0).all(axis=(1, 2)) & (before > 0).any(axis=(1, 2))
  # 800 draws: a standard deviation is 0.015.
  assert abs(dropped.mean() - 0.25) < 0.06
  want = np.where(dropped[:, None, None], 0, before / 0.75)
  np.testing.assert_allclose(after, want, rtol=1e-6)


def test_start_values_are_the_official_ones():
  head = segmentation.FCNHead(num_classes=150, features=64)
  params = head.init(jax.random.key(0), jnp.zeros((1, 2, 2, 32)), train=False)
  params = params['params']
  classifier = params['classifier']
  assert not classifier['bias'].any()
  np.testing.assert_allclose(classifier['kernel'].std(), 0.01, rtol=0.05)
  kernel = params['conv']['conv']['kernel']
  np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.05)


def test_pooling_one_image_into_one_bin_cannot_train():
  pooling = segmentation.PyramidPooling(8)
  x = jnp.ones((1, 5, 7, 3))
  variables = pooling.init(jax.random.key(0), x, train=False)
  with pytest.raises(ValueError, match='one value a channel'):
    pooling.apply(variables, x, train=True, mutable=['batch_stats'])
