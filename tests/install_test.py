"""The wheel alone: its files, all recipes, and a training."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The clone is on the path of an editable install, and must not help.
PROGRAM = """
import pathlib, sys
installed, clone, workdir = sys.argv[1:]
sys.path = [installed, *(x for x in sys.path if x != clone)]

from acmix_jax import __main__ as program
from acmix_jax.tools import config_file

for name in config_file.recipes():
  assert config_file.load(name).task, name
small = [
  '--config=digits_acmix', f'--workdir={workdir}',
  '--config.model.stage_sizes=(1,)', '--config.model.width=4',
  '--config.train.num_steps=2', '--config.train.log_every_steps=1',
  '--config.train.batch_size=8', '--config.optim.warmup_epochs=0.0',
]
assert program.main(['train', *small]) == 0
assert 'configs' not in sys.modules
for name, module in list(sys.modules.items()):
  if name.startswith('acmix_jax') and module.__file__:
    assert pathlib.Path(module.__file__).is_relative_to(installed), name
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  # From a source distribution: nothing is left in the clone.
  subprocess.run(
    [sys.executable, '-m', 'uv', 'build', '--quiet', '--out-dir', folder],
    cwd=ROOT,
    check=True,
  )
  (path,) = folder.glob('*.whl')
  return zipfile.ZipFile(path)


def test_the_wheel_has_the_package_alone(wheel):
  names = wheel.namelist()
  assert {name.partition('/')[0] for name in names} == {
    'acmix_jax',
    next(x for x in names if x.endswith('/METADATA')).partition('/')[0],
  }
  assert not [name for name in names if 'test' in name]
  recipes = {path.name for path in (ROOT / 'configs').glob('*.py')}
  assert recipes == {
    pathlib.Path(name).name for name in names if '/configs/' in name
  }
  kernels = ROOT / 'acmix_jax' / 'cpu_kernels'
  for path in [*kernels.glob('*.cc'), *kernels.glob('*.h')]:
    assert f'acmix_jax/cpu_kernels/{path.name}' in names


def test_the_wheel_trains_where_there_is_no_clone(wheel, tmp_path):
  wheel.extractall(tmp_path / 'installed')
  subprocess.run(
    [
      *(sys.executable, '-c', PROGRAM),
      *(tmp_path / 'installed', ROOT, tmp_path / 'run'),
    ],
    cwd=tmp_path,
    check=True,
  )
  assert 'eval/top1' in (tmp_path / 'run' / 'metrics.jsonl').read_text()
