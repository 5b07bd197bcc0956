"""The ResNets against the official and torchvision models."""

import jax
import jax.numpy as jnp
import numpy as np

import acmix_jax
from tests.fixtures import official


def test_attention_takes_the_weights_of_acmix_without_the_convolution():
  state_dict, _, _ = official.model('resnet26_acmix')
  paths = ('rate1', 'rate2', 'fc.weight', 'dep_conv.weight')
  attention = {
    key: value
    for key, value in state_dict.items()
    if key == 'fc.weight' or not key.endswith(paths)
  }
  variables = acmix_jax.from_torch('resnet26_attention', attention)
  np.testing.assert_array_equal(
    variables['params']['backbone']['stage1_0']['operator']['query']['kernel'],
    state_dict['layer1.0.conv2.conv1.weight'][:, :, 0, 0].T,
  )


def test_shift_kernels_survive_the_construction_of_the_model():
  model = acmix_jax.create_model(
    'resnet26_acmix', stage_sizes=(1, 1), width=8, num_classes=2
  )
  images = jnp.zeros((1, 32, 32, 3))
  params = jax.jit(model.init)(jax.random.key(0), images)['params']
  for stage in ('stage1_0', 'stage2_0'):
    operator = params['backbone'][stage]['operator']
    shifts = np.asarray(operator['depthwise_kernel'])
    assert set(np.unique(shifts)) == {0, 1}
    assert (shifts.sum(axis=(0, 1)) == 1).all()
