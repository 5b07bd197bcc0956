"""ImageNet: what is prepared from the archives, and how it is read."""

import collections
import pickle
import shutil

import numpy as np
import pytest

from acmix_jax.data import decode
from acmix_jax.data.builders import imagenet
from acmix_jax.tools import prepare
from tests import fake_data


@pytest.fixture(scope='module')
def tars(tmp_path_factory):
  return fake_data.write_imagenet_tars(tmp_path_factory.mktemp('tars'))


@pytest.fixture(scope='module')
def prepared(tars, tmp_path_factory):
  directory = tmp_path_factory.mktemp('prepared')
  assert run_prepare(tars, directory) == 0
  return directory


def run_prepare(source, data_dir, *options):
  return prepare.main(
    [
      'imagenet2012',
      f'--source={source}',
      f'--data_dir={data_dir}',
      *options,
    ]
  )


def test_imagenet_holds_the_files_of_the_archives(prepared):
  source = fake_data.make_source('imagenet2012', prepared)
  assert source.num_classes == 1000
  assert source.class_names[:3] == fake_data.SYNSETS
  examples = {}
  for i in range(len(source)):
    examples[source[i]['name']] = source[i]
  assert len(examples) == len(source) == 9
  for label, synset in enumerate(fake_data.SYNSETS):
    for i in range(3):
      kind = fake_data.ODD_KINDS[label] if i == 0 else 'jpeg'
      pixels = fake_data.picture(100 * label + i)
      example = examples[f'{synset}_{i}.JPEG']
      assert example['label'] == label
      assert example['image'] == fake_data.encode(pixels, kind)
      assert decode.decode(example['image']).shape == pixels.shape


def test_imagenet_validation_has_the_official_labels(prepared):
  source = fake_data.make_source('imagenet2012', prepared, 'validation')
  truth = imagenet.validation_labels()
  assert len(source) == 4
  for i in range(len(source)):
    number = int(source[i]['name'][-13:-5])
    assert source.class_names[source[i]['label']] == truth[number - 1]


def test_imagenet_lists_are_complete():
  names, truth = imagenet.class_names(), imagenet.validation_labels()
  assert names == sorted(set(names)) and len(names) == 1000
  assert collections.Counter(truth) == dict.fromkeys(names, 50)


def test_imagenet_takes_parts_of_a_split(prepared):
  assert len(fake_data.make_source('imagenet2012', prepared, 'train[:4]')) == 4
  with pytest.raises(ValueError, match="'test'; it holds: train, validation"):
    fake_data.make_source('imagenet2012', prepared, 'test')


def test_imagenet_mistakes_are_named(tmp_path):
  with pytest.raises(ValueError, match='data.dir is empty.*tools.prepare'):
    fake_data.make_source('imagenet2012')
  with pytest.raises(FileNotFoundError, match=f'{tmp_path} holds no data set'):
    fake_data.make_source('imagenet2012', tmp_path)


def test_imagenet_without_random_access_is_refused(prepared, tmp_path):
  version = shutil.copytree(prepared / 'imagenet2012' / '1.0.0', tmp_path / 'v')
  description = version / 'dataset_info.json'
  text = description.read_text()
  assert 'array_record' in text
  description.write_text(text.replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match='stored as tfrecord.*convert_format'):
    fake_data.make_source('imagenet2012', version)


def test_damaged_record_is_named(prepared, tmp_path):
  version = shutil.copytree(prepared / 'imagenet2012' / '1.0.0', tmp_path / 'v')
  (records,) = version.glob('*-train.array_record*')
  content = bytearray(records.read_bytes())
  inside = content.index(b'JFIF') + 300
  content[inside : inside + 64] = bytes(64)
  records.write_bytes(content)
  source = fake_data.make_source('imagenet2012', version)
  errors = []
  for i in range(len(source)):
    try:
      source[i]
    except decode.DecodeError as error:
      errors.append(str(error))
  assert len(errors) == 1
  assert errors[0].startswith('record ') and str(version) in errors[0]


def test_resized_copy_is_made_beside_the_other(tars, prepared, tmp_path):
  assert run_prepare(tars, tmp_path, '--resize_short=16') == 0
  version = tmp_path / 'imagenet2012' / 'short_16' / '1.0.0'
  for directory in (tmp_path, version):
    source = fake_data.make_source('imagenet2012', directory)
    shapes = {
      decode.decode(source[i]['image']).shape for i in range(len(source))
    }
    assert shapes == {(16, 20, 3)}
  version.parent.rename(prepared / 'imagenet2012' / 'short_16')
  with pytest.raises(ValueError, match='several.*1.0.0, .*short_16/1.0.0'):
    fake_data.make_source('imagenet2012', prepared)


def test_resizing_keeps_what_is_small_or_damaged():
  image = fake_data.encode(fake_data.picture(0, (40, 32)), 'png')
  assert imagenet.resize_file('a', image, 32) == image
  assert imagenet.resize_file('a', image[:50], 16) == image[:50]
  smaller = decode.decode(imagenet.resize_file('a', image, 16))
  assert smaller.shape == (16, 20, 3)
  expected = fake_data.picture(0, (20, 16)).astype(int)
  assert np.abs(smaller - expected).mean() < 8


def test_prepare_names_what_is_missing(tars, tmp_path, capsys):
  assert run_prepare(tmp_path, tmp_path) == 2
  assert imagenet.TRAIN_ARCHIVE in capsys.readouterr().err
  assert run_prepare(tars, tmp_path, '--resize_short=-1') == 2
  assert 'resize_short=-1' in capsys.readouterr().err


def test_prepare_names_what_cannot_be_written(tars, tmp_path, capsys):
  (tmp_path / 'file').touch()
  assert run_prepare(tars, tmp_path / 'file') == 2
  assert f'{tmp_path}/file' in capsys.readouterr().err


def test_prepare_knows_the_home_folder(tars, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'tars').symlink_to(tars)
  assert run_prepare('~/tars', '~/data') == 0
  for directory in ('~/data', tmp_path / 'data'):
    assert len(fake_data.make_source('imagenet2012', directory)) == 9


def test_prepare_refuses_unknown_classes(tmp_path, capsys):
  fake_data.write_imagenet_tars(tmp_path, classes=('n00000000',))
  assert run_prepare(tmp_path, tmp_path / 'out') == 2
  assert 'n00000000.tar' in capsys.readouterr().err


def test_prepare_names_an_archive_that_is_cut_short(tmp_path, capsys):
  path = fake_data.write_imagenet_tars(tmp_path) / imagenet.TRAIN_ARCHIVE
  path.write_bytes(path.read_bytes()[:9000])
  assert run_prepare(tmp_path, tmp_path / 'out') == 2
  assert f'{path} is damaged or cut short' in capsys.readouterr().err


def test_imagenet_can_be_pickled(prepared):
  version = prepared / 'imagenet2012' / '1.0.0'
  source = fake_data.make_source('imagenet2012', version)
  first = source[0]
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == len(source)
  assert copy[0] == first
