"""Official weights as files for `load_weights`."""

import json
import pathlib
import sys

import chex
import numpy as np
import pytest
from safetensors import numpy as safetensors

import acmix_jax
from acmix_jax import weights
from acmix_jax.tools import convert
from tests.fixtures import official, seeded

_SPEC = (
  pathlib.Path(__file__).parents[1]
  / 'fixtures/models/resnet26_acmix_224x224_s1'
)


@pytest.fixture(scope='module')
def state_dict():
  spec = json.loads(_SPEC.with_suffix('.json').read_text())
  return {
    name: seeded.parameter(name, shape)
    for name, shape in spec['parameters'].items()
  }


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_converted_file_holds_the_converted_weights(
  state_dict, prefix, tmp_path
):
  source, target = tmp_path / 'in.safetensors', tmp_path / 'out.safetensors'
  safetensors.save_file(
    {prefix + name: value for name, value in state_dict.items()}, source
  )
  assert not convert.main(['resnet26_acmix', str(source), str(target)])
  chex.assert_trees_all_equal(
    acmix_jax.load_weights(target),
    acmix_jax.from_torch('resnet26_acmix', state_dict),
  )


def test_the_home_may_be_written_as_a_tilde(state_dict, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  safetensors.save_file(state_dict, tmp_path / 'in.safetensors')
  paths = '~/in.safetensors', '~/out.safetensors'
  assert not convert.main(['resnet26_acmix', *paths])
  assert (tmp_path / 'out.safetensors').exists()


@pytest.mark.parametrize('flag, value', [('--average', 1), ('--no-average', 0)])
def test_moving_averages_are_taken_or_not(
  state_dict, tmp_path, monkeypatch, flag, value
):
  average = {name: np.ones_like(x) for name, x in state_dict.items()}
  saved = {
    'state_dict': {name: 0 * x for name, x in average.items()},
    'state_dict_ema': average,
  }
  monkeypatch.setattr(convert, 'read', lambda path: saved)
  target = tmp_path / 'out.safetensors'
  assert not convert.main(['resnet26_acmix', 'in.pth', str(target), flag])
  head = acmix_jax.load_weights(target)['params']['head']
  assert (head['dense']['kernel'] == value).all()


def test_fields_of_the_model_are_taken(state_dict, tmp_path):
  source, target = tmp_path / 'in.safetensors', tmp_path / 'out.safetensors'
  head = {name: state_dict[name][:7] for name in ('fc.weight', 'fc.bias')}
  stage4 = [name for name in state_dict if name.startswith('layer4.')]
  small = {k: v for k, v in (state_dict | head).items() if k not in stage4}
  small['fc.weight'] = small['fc.weight'][:, :1024]
  safetensors.save_file(small, source)
  assert not convert.main(
    [
      *('resnet26_acmix', str(source), str(target)),
      *('--num_classes=7', '--stage_sizes=(1, 2, 4)'),
    ]
  )
  head = acmix_jax.load_weights(target)['params']['head']
  assert head['dense']['kernel'].shape == (1024, 7)


def test_a_segmenter_is_converted(tmp_path):
  state_dict, *_ = official.segmenter('semantic_fpn_pvt_tiny')
  source, target = tmp_path / 'in.safetensors', tmp_path / 'out.safetensors'
  safetensors.save_file(state_dict, source)
  name = 'semantic_fpn:pvt_tiny'
  assert not convert.main([name, str(source), str(target), '--num_classes=7'])
  chex.assert_trees_all_equal(
    acmix_jax.load_weights(target),
    acmix_jax.from_torch(
      'semantic_fpn', state_dict, backbone='pvt_tiny', num_classes=7
    ),
  )


@pytest.fixture
def small(tmp_path):
  """A file of a small ResNet's weights, and these by their official names."""
  fields = dict(stage_sizes=(1,), num_classes=3)
  model = acmix_jax.create_model('resnet26', **fields)
  variables = official.random_variables(model, np.zeros((1, 32, 32, 3)))
  path = tmp_path / 'in.safetensors'
  weights.save_weights(path, variables)
  return path, acmix_jax.to_torch('resnet26', variables, **fields)


_SMALL = ['--stage_sizes=(1,)', '--num_classes=3', '--to_torch']


def test_weights_go_back_to_their_official_names(small, tmp_path):
  source, wanted = small
  target = tmp_path / 'out.safetensors'
  assert not convert.main(['resnet26', str(source), str(target), *_SMALL])
  chex.assert_trees_all_equal(safetensors.load_file(target), wanted)


def test_weights_go_back_to_pytorch(small, tmp_path):
  torch = pytest.importorskip('torch')
  source, wanted = small
  target = tmp_path / 'out.pth'
  assert not convert.main(['resnet26', str(source), str(target), *_SMALL])
  found = torch.load(target, weights_only=True)
  chex.assert_trees_all_equal({k: x.numpy() for k, x in found.items()}, wanted)


def test_entries_that_do_not_fit_are_named(state_dict, tmp_path, capsys):
  source, target = tmp_path / 'in.safetensors', tmp_path / 'out.safetensors'
  safetensors.save_file(state_dict | {'extra.weight': np.zeros(2)}, source)
  assert convert.main(['resnet26', str(source), str(target)]) == 2
  message = capsys.readouterr().err
  assert 'extra: extra.weight' in message
  assert 'missing: layer1.0.conv2.weight' in message
  assert not target.exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['resnet2', 'a.pth', 'b.safetensors'], "Did you mean 'resnet26'"),
    (['resnet26', 'a.pth', 'b.npz'], 'must end in .safetensors'),
    (['resnet26', 'RUN', 'b.npz', '--to_torch'], 'must end in one of'),
    (['resnet26', 'a.safetensors', 'b.safetensors'], 'a.safetensors'),
    (
      ['resnet26', 'a.pth', 'b.safetensors', '--widht=3'],
      "Did you mean 'width'",
    ),
    (['resnet26', 'a.pth', 'b.safetensors', 'c'], "'c' is not understood"),
  ],
)
def test_wrong_arguments_are_answered(arguments, message, capsys):
  assert convert.main(arguments) == 2
  assert message in capsys.readouterr().err


def test_a_missing_pytorch_is_told(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(sys.modules, 'torch', None)
  arguments = ['resnet26', str(tmp_path / 'a.pth'), 'b.safetensors']
  assert convert.main(arguments) == 2
  assert "pip install 'acmix-jax[torch]'" in capsys.readouterr().err


def test_pytorch_files_are_read_as_saved_by_training_programs(
  monkeypatch, tmp_path
):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'a.pth'
  value = torch.arange(4.0).to(torch.bfloat16)
  counter = torch.tensor(3)
  for saved in (
    {'module.w': value, 'n': counter},
    {'state_dict': {'module.w': value, 'n': counter}, 'epoch': 1},
    {'model': {'w': value, 'n': counter}, 'optimizer': {}},
  ):
    torch.save(saved, path)
    found = weights.state_dict.unwrap(convert.read(path))
    np.testing.assert_array_equal(found['w'], np.arange(4, dtype=np.float32))
    assert found['n'] == 3
  torch.save({'model': {'w': value}, 'config': pathlib.Path('a')}, path)
  with pytest.raises(ValueError, match='more than weights'):
    convert.read(path)
