"""Trainings whose files were damaged go on from what is whole."""

import shutil

import numpy as np
import pytest

from acmix_jax import weights
from acmix_jax.train import loop
from acmix_jax.weights import manifest
from tests.train import tiny_run

pytestmark = pytest.mark.usefixtures('tiny_model')


@pytest.fixture
def workdir(tmp_path, straight):
  """A copy of a finished training."""
  shutil.copytree(straight, tmp_path / 'run')
  return tmp_path / 'run'


def _newest(workdir):
  return workdir / 'checkpoints' / str(tiny_run.steps(workdir)[-1])


def _cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def _empty(path):
  path.write_bytes(b'')


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def _remove(path):
  path.unlink()


def _largest(folder):
  files = [path for path in folder.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def _check_equal(workdir, straight):
  assert tiny_run.lines(workdir) == tiny_run.lines(straight)
  for (path, ours), (_, expected) in zip(
    tiny_run.state(workdir), tiny_run.state(straight), strict=True
  ):
    np.testing.assert_array_equal(ours, expected, err_msg=str(path))


def test_every_checkpoint_has_a_manifest(straight):
  for step in tiny_run.steps(straight):
    assert manifest.check(straight / 'checkpoints' / str(step))


@pytest.mark.parametrize('damage', [_cut, _empty, _flip, _remove])
@pytest.mark.parametrize('part', ['state/d', 'state', 'metrics', 'progress'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_resumed(
  workdir, straight, caplog, damage, part
):
  newest = _newest(workdir)
  damage(_largest(newest / part))
  loop.run(tiny_run.config(), str(workdir))
  assert f'{newest} is damaged' in caplog.text
  kept = newest.with_name(f'{newest.name}.damaged-1')
  assert kept.is_dir() and f'kept as {kept}' in caplog.text
  _check_equal(workdir, straight)


def test_an_older_damaged_checkpoint_is_set_aside_too(workdir, straight):
  step, *_, newest = tiny_run.steps(workdir)
  older = workdir / 'checkpoints' / str(step)
  _empty(older / 'metrics' / 'metrics')
  assert loop.run(tiny_run.config(), str(workdir)) == {}
  assert not older.exists() and newest in tiny_run.steps(workdir)


@pytest.mark.parametrize('damage', [_cut, _remove])
def test_a_checkpoint_without_manifest_is_judged_by_restoring_it(
  workdir, straight, caplog, damage
):
  newest = _newest(workdir)
  (newest / manifest.NAME).unlink()
  assert loop.run(tiny_run.config(), str(workdir)) == {}
  damage(newest / 'state' / '_METADATA')
  loop.run(tiny_run.config(), str(workdir))
  assert f'{newest} cannot be restored' in caplog.text
  assert newest.with_name(f'{newest.name}.damaged-1').is_dir()
  _check_equal(workdir, straight)


@pytest.mark.parametrize('sealed', [True, False])
def test_a_training_without_a_whole_checkpoint_does_not_begin_anew(
  workdir, sealed
):
  for checkpoint in (workdir / 'checkpoints').iterdir():
    _empty(checkpoint / 'state' / '_METADATA')
    if not sealed:
      (checkpoint / manifest.NAME).unlink()
  steps = tiny_run.steps(workdir)
  for _ in range(2):
    with pytest.raises(manifest.DamagedError, match='No checkpoint can be'):
      loop.run(tiny_run.config(), str(workdir))
    assert tiny_run.steps(workdir) == steps


def test_weights_of_a_damaged_checkpoint_are_refused(workdir):
  newest = _newest(workdir)
  _flip(_largest(newest / 'state' / 'd'))
  with pytest.raises(manifest.DamagedError, match=f'{newest} is damaged'):
    weights.load_weights(newest)
  with pytest.raises(manifest.DamagedError, match=f'{newest} is damaged'):
    loop.run(tiny_run.config(), str(workdir), 'eval', newest.name)
  shutil.rmtree(newest / 'state')
  with pytest.raises(manifest.DamagedError, match='missing: state/'):
    weights.load_weights(newest)


@pytest.mark.parametrize(
  'garbage',
  [
    b'{"step": 12, "train/lo',
    b'\xff\x00\xfe\n',
    b'[1, 2]\n"text"\n7\nnull\n',
    b'{"loss": 1.0}\n{"step": "a"}\n{"step": null}\n',
  ],
  ids=['cut', 'binary', 'no objects', 'no steps'],
)
def test_unreadable_metrics_are_kept_aside_and_the_others_stay(
  workdir, straight, caplog, garbage
):
  path = workdir / 'metrics.jsonl'
  first, *rest = path.read_bytes().splitlines(keepends=True)
  damaged = b''.join([first, garbage.strip() + b'\n', *rest, garbage])
  path.write_bytes(damaged)
  loop.run(tiny_run.config(), str(workdir))
  assert tiny_run.lines(workdir) == tiny_run.lines(straight)
  kept = workdir / 'metrics.jsonl.damaged-1'
  assert kept.read_bytes() == damaged and str(kept) in caplog.text
  assert 'the first of them line 2.' in caplog.text


@pytest.mark.parametrize('content', [b'', b'{"seed": 0', b'[]', b'\xff'])
def test_a_damaged_config_is_kept_aside(workdir, caplog, content):
  path = workdir / 'config.json'
  whole = path.read_bytes()
  path.write_bytes(content)
  loop.run(tiny_run.config(), str(workdir))
  assert path.read_bytes() == whole
  kept = workdir / 'config.json.damaged-1'
  assert kept.read_bytes() == content and str(kept) in caplog.text
