"""The ACmix operator against the official code and against its parts."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acmix_jax
from acmix_jax.nn import local_attention

_FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'operators'


def load(name):
  """The fixture with images in NHWC, and its entries under a prefix."""
  arrays = dict(np.load(_FIXTURES / f'{name}.npz'))
  for key in ('input', 'output', 'cotangent', 'grad_input'):
    arrays[key] = arrays[key].transpose(0, 2, 3, 1)

  def variables(prefix):
    def dense(name):
      return {
        'kernel': arrays[f'{prefix}/{name}.weight'][:, :, 0, 0].T,
        'bias': arrays[f'{prefix}/{name}.bias'],
      }

    return {
      'alpha': arrays[f'{prefix}/rate1'][0],
      'beta': arrays[f'{prefix}/rate2'][0],
      'fc_kernel': arrays[f'{prefix}/fc.weight'][:, :, 0, 0].T,
      'depthwise_kernel': arrays[f'{prefix}/dep_conv.weight'].transpose(
        2, 3, 1, 0
      ),
      'attention': {
        'query': dense('conv1'),
        'key': dense('conv2'),
        'value': dense('conv3'),
        'position': dense('conv_p'),
      },
    }

  return arrays, variables


def assert_relative(got, want, tolerance=1e-5):
  np.testing.assert_allclose(
    got, want, rtol=0, atol=tolerance * np.abs(want).max()
  )


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('acmix_local_stride1', {}),
    ('acmix_local_stride2', {'strides': 2}),
    ('acmix_local_kernel5_heads2', {'kernel_att': 5, 'num_heads': 2}),
  ],
)
@pytest.mark.parametrize('convolution', ['shifts', 'grouped', 'channels'])
@pytest.mark.parametrize('attention', ['auto', 'patches'])
def test_acmix_equals_the_official_code(name, options, attention, convolution):
  arrays, variables = load(name)
  layer = acmix_jax.ACmix(
    32,
    attention_implementation=attention,
    convolution_implementation=convolution,
    **options,
  )
  out, pullback = jax.vjp(
    jax.jit(lambda params, x: layer.apply({'params': params}, x)),
    variables('param'),
    arrays['input'],
  )
  assert_relative(out, arrays['output'])
  gradients, input_gradient = pullback(jnp.asarray(arrays['cotangent']))
  assert_relative(input_gradient, arrays['grad_input'])
  # The bias of the position term cancels: both gradients are rounding noise.
  noise = gradients['attention']['position'].pop('bias')
  want = variables('grad')
  del want['attention']['position']['bias']
  np.testing.assert_allclose(noise, 0, atol=1e-4)
  jax.tree.map(assert_relative, gradients, want)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('param_dtype', ['float32', 'half'])
def test_half_precision_is_near_single(dtype, param_dtype):
  param_dtype = dtype if param_dtype == 'half' else param_dtype
  x = jax.random.normal(jax.random.key(0), (2, 9, 8, 16))
  layer = acmix_jax.ACmix(16, strides=2, dtype=dtype, param_dtype=param_dtype)
  variables = layer.init(jax.random.key(1), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    jnp.dtype(param_dtype)
  }
  out = layer.apply(variables, x)
  assert out.dtype == dtype
  single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
  want = acmix_jax.ACmix(16, strides=2).apply(single, x)
  np.testing.assert_allclose(
    out.astype(jnp.float32), want, atol=3e-2 * np.abs(want).max()
  )


def test_paths_start_equal_and_shifts_survive():
  x = jnp.zeros((1, 8, 8, 8))
  params = acmix_jax.ACmix(8, kernel_conv=5).init(jax.random.key(0), x)
  params = params['params']
  assert params['alpha'] == params['beta'] == 0.5
  want = np.zeros((5, 5, 25, 8))
  for tap in range(25):
    want[tap // 5, tap % 5, tap] = 1
  np.testing.assert_array_equal(params['depthwise_kernel'], want)


def test_acmix_is_attention_plus_convolution():
  x = jax.random.normal(jax.random.key(0), (1, 8, 9, 8))
  variables = acmix_jax.ACmix(8).init(jax.random.key(1), x)
  params = variables['params']
  alone = local_attention.LocalAttention(8)
  attended = alone.apply({'params': params['attention']}, x)

  def weighted(alpha, beta):
    rates = {'alpha': jnp.float32(alpha), 'beta': jnp.float32(beta)}
    return acmix_jax.ACmix(8).apply({'params': params | rates}, x)

  np.testing.assert_allclose(weighted(2, 0), 2 * attended, rtol=1e-5)
  np.testing.assert_allclose(
    weighted(2, 3), weighted(2, 0) + 3 * weighted(0, 1), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ('options', 'shape', 'message'),
  [
    ({'features': 30}, (1, 8, 8, 8), 'nearest that works: features=28'),
    ({'features': 32, 'kernel_conv': 2}, (1, 8, 8, 8), 'nearest .* 3'),
    ({'features': 32, 'kernel_att': 6}, (1, 8, 8, 8), 'nearest .* 7'),
    ({'features': 32, 'strides': 0}, (1, 8, 8, 8), 'strides=0'),
    ({'features': 32}, (8, 8, 8), r'\[b, h, w, c\]'),
    ({'features': 32}, (1, 3, 8, 8), 'smallest side that works is 4'),
  ],
)
@pytest.mark.usefixtures('without_shape_checks')
def test_acmix_names_what_is_wrong(options, shape, message):
  layer = acmix_jax.ACmix(**options)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      layer.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
    )
