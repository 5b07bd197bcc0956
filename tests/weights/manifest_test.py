"""Damage to the files of a checkpoint is found and named."""

import pytest

from acmix_jax.weights import manifest

_FILES = {'state/d/data': bytes(range(256)) * 40, 'metrics/metrics': b'{}'}


@pytest.fixture
def checkpoint(tmp_path):
  """A folder of two files with their manifest."""
  for name, content in _FILES.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
  manifest.write(tmp_path)
  return tmp_path


def test_whole_files_pass_also_beside_new_ones(checkpoint):
  assert manifest.check(checkpoint)
  (checkpoint / 'notes.txt').write_text('new')
  assert manifest.check(checkpoint)
  assert not list(checkpoint.glob('*.tmp'))


@pytest.mark.parametrize('name', _FILES)
@pytest.mark.parametrize(
  'damage, message',
  [
    (lambda b: b[:-1], r'1 of another size: {} \({} bytes'),
    (lambda b: b'', r'1 of another size: {} \(0 bytes'),
    (lambda b: bytes([b[0] ^ 1]) + b[1:], '1 of another content: {}'),
    (None, '1 missing: {}'),
  ],
  ids=['cut', 'emptied', 'one bit', 'missing'],
)
def test_damage_is_named(checkpoint, name, damage, message):
  path = checkpoint / name
  path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
  size = len(_FILES[name]) - 1
  with pytest.raises(manifest.DamagedError) as error:
    manifest.check(checkpoint)
  assert str(checkpoint) in str(error.value)
  error.match(message.format(name, size))


@pytest.mark.parametrize(
  'content', ['', '{"a": [1, 2', '[]', '{"a": 1}', '\xff']
)
def test_a_damaged_manifest_is_damage(checkpoint, content):
  (checkpoint / manifest.NAME).write_text(content, encoding='latin-1')
  with pytest.raises(manifest.DamagedError, match=r'manifest\.json cannot be'):
    manifest.check(checkpoint)


def test_a_checkpoint_may_lack_a_manifest(tmp_path):
  assert not manifest.check(tmp_path)
