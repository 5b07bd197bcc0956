"""Window attention and its ACmix against the official code and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.nn import acmix, transformer, window_attention
from acmix_jax.ops import shifted_windows
from acmix_jax.weights.tables import swin
from tests.fixtures import official


def layer(
  features, num_heads, window_size, shifted, operator='acmix', dtype=None
):
  attention = window_attention.WindowAttention(
    features, num_heads, window_size, dtype=dtype, parent=None
  )
  operator = acmix.make_operator(
    operator, attention, use_fc_bias=True, dtype=dtype
  )
  return window_attention.ShiftedWindows(
    operator, window_size, shifted, parent=None
  )


def test_equals_the_official_operator():
  arrays = official.operator('acmix_window')
  module = layer(32, 2, 7, shifted=False)
  shapes = official.random_variables(module, arrays['input'])
  names = (swin.TABLE, 'backbone/stage1_0/operator', 'layers.0.blocks.0.attn.')
  official.check_operator(
    module.apply,
    official.convert(arrays, 'param', shapes, *names),
    arrays,
    official.convert(arrays, 'grad', shapes, *names),
  )


def test_shifted_block_equals_the_official_one():
  arrays = official.operator('acmix_swin_block_shifted')
  block = transformer.Block(layer(32, 2, 7, shifted=True))

  def apply(variables, x):
    return block.apply(variables, x, train=False)

  x = jax.ShapeDtypeStruct(arrays['input'].shape, jnp.float32)
  shapes = jax.eval_shape(
    lambda x: block.init(jax.random.key(0), x, train=False), x
  )
  names = (swin.TABLE, 'backbone/stage1_0', 'layers.0.blocks.0.')
  official.check_operator(
    apply,
    official.convert(arrays, 'param', shapes, *names),
    arrays,
    official.convert(arrays, 'grad', shapes, *names),
  )


def reference(params, image, heads, size, shift):
  """Swin-ACmix of one image [h, w, c], pixel by pixel."""
  h, w, c = image.shape
  rows, columns = (-(-side // size) * size for side in (h, w))
  dense = params['attention']['query_key_value']
  maps = image @ dense['kernel'] + dense['bias']
  q, k, v = np.split(maps.reshape(h, w, 3 * heads, -1), 3, axis=2)
  pixels = [(y, x) for y in range(h) for x in range(w)]
  # Where the pad and the roll bring each pixel.
  place = {
    (y, x): ((y - shift) % rows, (x - shift) % columns) for y, x in pixels
  }

  def region(pixel):
    y, x = place[pixel]
    return y // size, x // size, *(side < shift for side in pixel)

  bias = params['attention']['bias'].reshape(2 * size - 1, 2 * size - 1, heads)
  attended = np.empty_like(q)
  for a in pixels:
    seen = [b for b in pixels if region(b) == region(a)]
    offsets = np.array([np.subtract(place[a], place[b]) for b in seen])
    ys, xs = np.array(seen).T
    logits = (q[a] * k[ys, xs]).sum(-1) / q.shape[-1] ** 0.5
    logits += bias[tuple(offsets.T + size - 1)]
    weights = np.exp(logits - logits.max(0))
    weights /= weights.sum(0)
    attended[a] = (weights[..., None] * v[ys, xs]).sum(0)
  out = params['attention']['out']
  attended = attended.reshape(h, w, c) @ out['kernel'] + out['bias']

  connected = np.einsum(
    'yxmd,mt->yxdt', maps.reshape(h, w, 3 * heads, -1), params['fc_kernel']
  )
  connected += params['fc_bias']
  rolled = np.zeros((rows + 2, columns + 2, *connected.shape[2:]), np.float32)
  for pixel in pixels:
    y, x = place[pixel]
    rolled[y + 1, x + 1] = connected[pixel]
  result = params['alpha'] * attended
  for pixel in pixels:
    y, x = place[pixel]
    patch = rolled[y : y + 3, x : x + 3]
    for channel in range(c):
      kernel = params['depthwise_kernel'][..., channel]
      convolved = (patch[:, :, channel // heads] * kernel).sum()
      result[pixel][channel] += params['beta'] * convolved
  return result


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('shape', [(10, 9), (8, 4), (3, 6), (8, 12)])
def test_padding_is_masked_and_zero_for_the_convolution(shape, shifted):
  x = np.random.default_rng(4).standard_normal((1, *shape, 8), np.float32)
  module = layer(8, 2, 4, shifted)
  variables = official.random_variables(module, x)
  shift = 2 if shifted and min(shape) > 4 else 0
  want = reference(variables['params'], x[0], 2, 4, shift)
  got = module.apply(variables, jnp.asarray(x))
  official.assert_relative(got[0], want)


def test_relative_bias_reads_the_table_as_an_index_would():
  table = np.arange(25.0 * 3, dtype=np.float32).reshape(25, 3)
  got = shifted_windows.relative_bias(table, 3)
  for a in range(9):
    for b in range(9):
      dy, dx = np.subtract(divmod(a, 3), divmod(b, 3)) + 2
      np.testing.assert_array_equal(got[:, a, b], table[5 * dy + dx])


def test_bfloat16_is_close_to_float32():
  x = jax.random.normal(jax.random.key(1), (2, 9, 8, 32))
  exact, half = (
    layer(32, 2, 4, shifted=True, dtype=dtype) for dtype in (None, jnp.bfloat16)
  )
  variables = official.random_variables(exact, x)
  got, want = (f.apply(variables, x) for f in (half, exact))
  assert got.dtype == jnp.bfloat16
  official.assert_relative(got.astype(np.float32), want, 0.05)


def test_errors_say_what_works():
  def init(module, *shape):
    module.init(jax.random.key(0), jnp.zeros(shape))

  with pytest.raises(ValueError, match='nearest that works: features=9'):
    init(window_attention.WindowAttention(10, 3), 1, 7, 7, 10)
  with pytest.raises(ValueError, match='8x7 map is not made of whole windows'):
    init(window_attention.WindowAttention(8, 2), 1, 8, 7, 8)
  with pytest.raises(ValueError, match="operator='conv'; 'attention', 'acmix'"):
    layer(8, 2, 7, shifted=False, operator='conv')
