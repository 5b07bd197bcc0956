"""What the tool drops of a trained network, and what it says of that."""

import json
import re
import shutil

import pytest

from acmix_jax import weights
from acmix_jax.tools import collapse
from acmix_jax.train import loop
from tests.train import tiny_acmix

# What ml_collections reads configs with.
pytestmark = pytest.mark.filterwarnings('ignore:.*load_module')

CONFIG = """
from tests.train import tiny_acmix
def get_config():
  return tiny_acmix.config('resnet26_acmix')
"""


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """The workdir of a network with ACmix."""
  workdir = tmp_path_factory.mktemp('workdir')
  tiny_acmix.write(workdir, 'resnet26_acmix')
  return workdir


def _numbers(line):
  return [float(x.replace(',', '')) for x in re.findall(r'[\d,]+\.?\d*', line)]


def test_a_path_is_dropped_and_the_smaller_network_written(
  workdir, tmp_path, capsys
):
  out = tmp_path / 'less.safetensors'
  # Both weights are as they started: 0.5.
  arguments = [str(workdir), '--layers=stage1_*=attention', f'--out={out}']
  assert collapse.main(arguments) == 0
  head, layer, macs, parameters, top1, seconds, said = (
    capsys.readouterr().out.splitlines()
  )
  assert head.split() == ['block', '|alpha|', '|beta|', 'kept', 'multiply-adds']
  assert layer.split()[:4] == ['stage1_0', '0.500', '0.500', 'attention']
  # Of 8 channels and 8x8 pixels: 27 and 81 products for each of them.
  before, after = _numbers(layer)[-2:]
  assert before - after == 108 * 8 * 64
  before, after = _numbers(macs)
  assert before - after == 108 * 8 * 64
  # Those of the fully connected layer, the convolution, and two weights.
  before, after = _numbers(parameters)
  assert before - after == 12 * 9 + 81 * 8 + 2
  _, before, after = _numbers(top1)
  config = tiny_acmix.config('resnet26_acmix')
  metrics = loop.run(config, workdir, 'eval')
  assert before == pytest.approx(metrics['top1'], abs=1e-4)
  assert all(x > 0 for x in _numbers(seconds))

  assert "block_operators=\"(('stage1_0', 'attention'),)\"" in said
  assert weights.load_description(out)['class_names'][:2] == ['0', '1']
  config.init_from = str(out)
  config.model.block_operators = (('stage1_0', 'attention'),)
  metrics = loop.run(config, tmp_path / 'none', 'eval')
  assert after == pytest.approx(metrics['top1'], abs=1e-4)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['RUN', '--threshold=0.1'], 'nothing would be dropped'),
    (['RUN', '--threshold=0.1', '--out=x.npz'], 'must end in .safetensors'),
    (['RUN', '--layers=stage2_*=attention'], 'matches no ACmix layer'),
    (['RUN', '--layers=stage1_0'], "Path '' is unknown"),
    (['RUN', '--threshold=0.1', '--config.seed=1'], 'of a CONFIG alone'),
    (['NONE', '--threshold=0.1'], 'is no .safetensors file'),
    (['FILE', '--threshold=0.1'], 'belongs to no workdir'),
    (['CONFIG', 'FILE', '--threshold=0.1'], 'Hardly any weights fit'),
  ],
)
def test_what_cannot_be_done_is_said(
  workdir, tmp_path, capsys, arguments, message
):
  file, config = tmp_path / 'x.safetensors', tmp_path / 'config.py'
  weights.save_weights(file, {'params': {'head': {'kernel': [1.0]}}})
  config.write_text(CONFIG)
  paths = {'RUN': workdir, 'FILE': file, 'CONFIG': config}
  assert collapse.main([str(paths.get(x, x)) for x in arguments]) == 2
  assert message in capsys.readouterr().err


def test_a_recorded_config_without_a_needed_field(workdir, tmp_path, capsys):
  old = shutil.copytree(workdir, tmp_path / 'old')
  path = old / 'config.json'
  config = json.loads(path.read_text())
  del config['eval']
  path.write_text(json.dumps(config))
  assert collapse.main([str(old), '--threshold=0.1']) == 2
  assert f'The config.json of {old} lacks a field' in capsys.readouterr().err
