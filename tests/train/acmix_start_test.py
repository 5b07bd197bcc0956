"""Trainings with ACmix that start from networks without it."""

import pytest

from acmix_jax.train import loop
from tests.train import tiny_acmix


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """The workdir of a network with attention alone."""
  workdir = tmp_path_factory.mktemp('attention')
  tiny_acmix.write(workdir, 'resnet26_attention')
  return workdir


def test_the_first_evaluation_is_that_of_the_network_before(start, tmp_path):
  config = tiny_acmix.config('resnet26_attention')
  expected = loop.run(config, start, 'eval')
  assert 0 < expected['top1'] < 1
  expected = pytest.approx(expected, rel=1e-5)
  fields = dict(init_from=str(start), init_acmix='exact')
  config = tiny_acmix.config('resnet26_acmix', **fields)
  assert loop.run(config, tmp_path / 'run') == expected
  # Evaluations start as trainings do; where there is one, it is what counts.
  assert loop.run(config, tmp_path / 'none', 'eval') == expected
  config.init_acmix_weight = 0.5
  assert loop.run(config, tmp_path / 'none', 'eval') != expected
  assert loop.run(config, tmp_path / 'run', 'eval') == expected


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('resnet26_acmix', {'init_acmix': 'exactly'}, "Did you mean 'exact'"),
    (
      'resnet26_acmix',
      {'init_acmix': 'exact', 'init_acmix_weight': float('inf')},
      'no finite number',
    ),
    (
      'resnet26_acmix',
      {'init_acmix': 'exact', 'init_from': ''},
      'changes the weights of init_from',
    ),
    ('resnet26_attention', {'init_acmix': 'exact'}, 'has no ACmix layer'),
  ],
)
def test_fields_that_cannot_work_are_refused(
  start, tmp_path, name, fields, message
):
  fields = {'init_from': str(start)} | fields
  with pytest.raises(ValueError, match=message):
    loop.run(tiny_acmix.config(name, **fields), tmp_path)
