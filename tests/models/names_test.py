"""The names of parameters, by which weights are exchanged and trained."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from acmix_jax import models

# A block of each family, its stem and its head: module, then its parameters.
NAMES = {
  'resnet26_acmix': """
    backbone/stage1_0/conv1: kernel
    backbone/stage1_0/conv3: kernel
    backbone/stage1_0/norm1: bias scale
    backbone/stage1_0/norm2: bias scale
    backbone/stage1_0/norm3: bias scale
    backbone/stage1_0/operator: alpha beta depthwise_kernel fc_kernel
    backbone/stage1_0/operator/attention/key: bias kernel
    backbone/stage1_0/operator/attention/position: bias kernel
    backbone/stage1_0/operator/attention/query: bias kernel
    backbone/stage1_0/operator/attention/value: bias kernel
    backbone/stage1_0/shortcut_conv: kernel
    backbone/stage1_0/shortcut_norm: bias scale
    backbone/stem_conv: kernel
    backbone/stem_norm: bias scale
    head/dense: bias kernel
  """,
  'san10_acmix': """
    backbone/stage1_0/dense: bias kernel
    backbone/stage1_0/norm1: bias scale
    backbone/stage1_0/norm2: bias scale
    backbone/stage1_0/operator: alpha beta depthwise_kernel fc_kernel
    backbone/stage1_0/operator/attention: bias2 kernel1 kernel2
    backbone/stage1_0/operator/attention/key: bias kernel
    backbone/stage1_0/operator/attention/norm1: bias scale
    backbone/stage1_0/operator/attention/norm2: bias scale
    backbone/stage1_0/operator/attention/query: bias kernel
    backbone/stage1_0/operator/attention/value: bias kernel
    backbone/stage1_conv: kernel
    backbone/stage1_norm: bias scale
    backbone/stem_conv1: kernel
    backbone/stem_conv2: kernel
    backbone/stem_norm1: bias scale
    backbone/stem_norm2: bias scale
    head/dense: bias kernel
  """,
  'pvt_tiny_acmix': """
    backbone: stage1_position
    backbone/stage1_0/mlp/fc1: bias kernel
    backbone/stage1_0/mlp/fc2: bias kernel
    backbone/stage1_0/norm1: bias scale
    backbone/stage1_0/norm2: bias scale
    backbone/stage1_0/operator: alpha beta depthwise_kernel fc_kernel
    backbone/stage1_0/operator/attention/key_value: bias kernel
    backbone/stage1_0/operator/attention/out: bias kernel
    backbone/stage1_0/operator/attention/query: bias kernel
    backbone/stage1_0/operator/attention/reduce: bias kernel
    backbone/stage1_0/operator/attention/reduce_norm: bias scale
    backbone/stage1_embed/conv: bias kernel
    backbone/stage1_embed/norm: bias scale
    head: token token_position
    head/dense: bias kernel
    head/norm: bias scale
  """,
  'swin_tiny_acmix': """
    backbone/stage1_0/mlp/fc1: bias kernel
    backbone/stage1_0/mlp/fc2: bias kernel
    backbone/stage1_0/norm1: bias scale
    backbone/stage1_0/norm2: bias scale
    backbone/stage1_0/operator: alpha beta depthwise_kernel fc_bias fc_kernel
    backbone/stage1_0/operator/attention: bias
    backbone/stage1_0/operator/attention/out: bias kernel
    backbone/stage1_0/operator/attention/query_key_value: bias kernel
    backbone/stage1_embed/conv: bias kernel
    backbone/stage1_embed/norm: bias scale
    backbone/stage2_merge/dense: kernel
    backbone/stage2_merge/norm: bias scale
    head/dense: bias kernel
    head/norm: bias scale
  """,
}
ONE_BLOCK = {
  'resnet26_acmix': dict(stage_sizes=(1,)),
  'san10_acmix': dict(
    stage_sizes=(1,), stem_size=1, widths=(64,), kernel_sizes=(3,)
  ),
  'pvt_tiny_acmix': dict(
    stage_sizes=(1,),
    widths=(64,),
    num_heads=(1,),
    mlp_ratios=(8,),
    reductions=(8,),
  ),
  'swin_tiny_acmix': dict(stage_sizes=(1, 1), num_heads=(3, 6)),
}
# Their blocks are named as those of the first stage.
OTHER_STAGES = re.compile('backbone/(stem|stage2)_[0-9]+/')


@pytest.mark.parametrize('name', NAMES)
def test_parameters_have_the_documented_names(name):
  model = models.create_model(name, **ONE_BLOCK[name])
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  modules = collections.defaultdict(list)
  for *module, parameter in sorted(
    traverse_util.flatten_dict(variables['params'])
  ):
    modules['/'.join(module)].append(parameter)
  lines = [
    f'{name}: {" ".join(modules[name])}'
    for name in sorted(modules)
    if not OTHER_STAGES.match(name)
  ]
  assert lines == [line.strip() for line in NAMES[name].strip().splitlines()]
