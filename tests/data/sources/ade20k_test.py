"""ADE20K as its archive unpacks, and as `tools.prepare` packs it."""

import pickle

import numpy as np
import pytest

from acmix_jax.data import decode
from acmix_jax.data.sources import ade20k
from acmix_jax.tools import prepare
from tests import fake_data


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
  return fake_data.write_ade20k(tmp_path_factory.mktemp('unpacked'))


@pytest.fixture(scope='module')
def packed(archive, tmp_path_factory):
  data = tmp_path_factory.mktemp('packed')
  argv = ['ade20k', f'--source={archive}', f'--data_dir={data}']
  assert prepare.main(argv) == 0
  return data


def test_archive_is_read_as_it_unpacks(archive):
  for directory in (archive, archive.parent):
    for split, count in (('train', 6), ('validation', 3)):
      source = fake_data.make_source('ade20k', directory, split)
      assert len(source) == count
      assert source.num_classes == 150
      assert source.class_names[::149] == ('thing 1', 'thing 150')
      assert np.unique(source[0]['label_map']).tolist() == [0, 1, 149, 255]
  # Numbers 0, 1, 2 and 150, of which the second file begins with the last.
  rows = np.resize([149, 255, 0, 1], 31)
  np.testing.assert_array_equal(source[1]['label_map'][:, 0], rows)


def test_packed_files_are_those_of_the_archive(archive, packed):
  for directory in (packed, packed / 'ade20k' / '1.0.0'):
    for split, count in (('train', 6), ('validation', 3), ('train[:2]', 2)):
      source = fake_data.make_source('ade20k', directory, split)
      assert len(source) == count
  for split in ('train', 'validation'):
    unpacked = fake_data.make_source('ade20k', archive, split)
    source = fake_data.make_source('ade20k', packed, split)
    assert source.class_names == unpacked.class_names
    by_name = {source[i]['name'].split('.')[0]: i for i in range(len(source))}
    assert len(by_name) == len(unpacked)
    for i in range(len(unpacked)):
      expected = unpacked.read(i)
      index = by_name[expected.image_name.split('/')[-1].split('.')[0]]
      files = source.read(index)
      assert files.image == expected.image
      assert files.label == expected.label
      assert tuple(source.sizes[index]) == tuple(unpacked.sizes[i])
      np.testing.assert_array_equal(
        source[index]['label_map'], unpacked[i]['label_map']
      )
      assert str(packed) in source[index]['name']


def test_packed_source_can_be_pickled(packed):
  source = fake_data.make_source('ade20k', packed / 'ade20k' / '1.0.0')
  copy = pickle.loads(pickle.dumps(source))
  assert copy[1]['image'] == source[1]['image']


@pytest.mark.parametrize(
  'text',
  [
    'Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t1\twall\n'
    '2 \t0.1\t9\t1\tdoor, double door\n3\t0.1\t9\t1\tbed \n',
    'Idx\tRatio\tTrain\tVal\tStuff\tName\r\n1\t0.1\t9\t1\t1\twall\r\n'
    '2\t0.1\t9\t1\t0\tdoor, double door\r\n3\t0.1\t9\t1\t0\tbed\r\n',
    'Idx,Ratio,Train,Val,Name\n1,0.1,9,1,wall\n'
    '2 ,0.1,9,1,door; double door\n3,0.1,9,1,"bed"',
  ],
  ids=['tabs', 'stuff', 'commas'],
)
def test_class_names_are_the_first_synonyms(tmp_path, text):
  path = tmp_path / ade20k.CLASSES_FILE
  path.write_bytes(text.encode())
  assert ade20k.read_class_names(path) == ('wall', 'door', 'bed')


def test_mistakes_are_named(archive, tmp_path):
  with pytest.raises(ValueError, match='data.dir is empty.*prepare ade20k'):
    fake_data.make_source('ade20k')
  with pytest.raises(FileNotFoundError, match='ADEChallengeData2016'):
    fake_data.make_source('ade20k', tmp_path)
  home = fake_data.write_ade20k(tmp_path)
  classes = home / ade20k.CLASSES_FILE
  classes.write_text('1\t0.1\t9\t1\twall\n3\t0.1\t9\t1\tbed\n')
  with pytest.raises(ValueError, match=f'{classes} does not list classes'):
    fake_data.make_source('ade20k', tmp_path)
  classes.unlink()
  with pytest.raises(FileNotFoundError, match=f'{classes} is missing'):
    fake_data.make_source('ade20k', tmp_path)


def test_labels_of_another_data_set_are_named(tmp_path):
  home = fake_data.write_ade20k(tmp_path, num_classes=151)
  text = (home / ade20k.CLASSES_FILE).read_text().splitlines()[:-1]
  (home / ade20k.CLASSES_FILE).write_text('\n'.join(text))
  source = fake_data.make_source('ade20k', tmp_path)
  with pytest.raises(
    decode.DecodeError, match='000.png: it holds the labels 151.*another data'
  ):
    source[0]


def test_what_cannot_be_packed_is_named(archive, tmp_path, capsys):
  argv = ['ade20k', f'--source={tmp_path}', f'--data_dir={tmp_path}/data']
  assert prepare.main(argv) == 2
  assert f'{tmp_path} does not hold ADEChallenge' in capsys.readouterr().err
  home = fake_data.write_ade20k(tmp_path)
  (home / 'annotations' / 'training' / '001.png').unlink()
  assert prepare.main(argv) == 2
  assert '1 images have no label map' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    prepare.main(['ade20k', f'--source={archive}'])
  assert 'give --source and --data_dir, or --check' in capsys.readouterr().err
