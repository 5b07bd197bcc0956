"""Extra levels and start values of the neck; segmentation_test has its maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acmix_jax.nn.heads import fpn
from tests.fixtures import official


def maps(*shapes):
  return [
    jax.random.normal(jax.random.key(i), (2, *shape))
    for i, shape in enumerate(shapes)
  ]


def conv(x, kernel, bias):
  """A 3x3 convolution with strides 2 and zeros around the map, in numpy."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows, columns = ((side - 1) // 2 for side in x.shape[1:3])
  return bias + sum(
    x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2][:, :rows, :columns]
    @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )


def test_pooled_level_is_every_second_pixel_of_the_last():
  neck, x = fpn.FPN(4, extra_levels='pool'), maps((6, 7, 3), (3, 4, 5))
  levels, _ = neck.init_with_output(jax.random.key(0), x)
  assert [level.shape for level in levels] == [
    (2, 6, 7, 4),
    (2, 3, 4, 4),
    (2, 2, 2, 4),
  ]
  np.testing.assert_array_equal(levels[2], levels[1][:, ::2, ::2])


def test_convolved_levels_come_from_the_coarsest_map():
  neck, x = fpn.FPN(4, extra_levels='conv'), maps((6, 8, 3), (5, 4, 6))
  variables = official.random_variables(neck, x)
  levels = neck.apply(variables, x)
  params = variables['params']
  want = x[1]
  for i in range(2):
    want = conv(want, **params[f'extra{i}'])
    official.assert_relative(levels[2 + i], want)


@pytest.mark.parametrize(
  ('start', 'stds'),
  [('kaiming', (0.0884, 0.0295)), ('xavier', (0.079, 0.0208))],
)
def test_start_values_are_those_of_the_sources(start, stds):
  neck = fpn.FPN(256, start=start)
  x = jnp.zeros((1, 1, 1, 64))
  params = neck.init(jax.random.key(0), [x])['params']
  # Of 64 channels in, the source's figure is 0.0791.
  for name, std in zip(('lateral0', 'output0'), stds, strict=True):
    np.testing.assert_allclose(params[name]['kernel'].std(), std, rtol=0.02)
    assert not params[name]['bias'].any()


@pytest.mark.parametrize('field', ['start', 'extra_levels'])
def test_an_unknown_choice_is_refused(field):
  neck = fpn.FPN(**{field: 'other'})
  with pytest.raises(ValueError, match=f"{field}='other'; 'ka|{field}='other'"):
    neck.init(jax.random.key(0), maps((2, 2, 3)))
