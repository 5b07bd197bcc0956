"""Digits and folders of images: their content, splits, answers to mistakes."""

import pickle

import numpy as np
import pytest
from sklearn import datasets

from tests import fake_data


def test_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(KeyError, match="mean 'imagenet2012'"):
    fake_data.make_source('imagenet')


def test_digits_hold_out_a_fifth_of_each_class():
  train, held_out = (
    fake_data.make_source('digits'),
    fake_data.make_source('digits', split='validation'),
  )
  assert (len(train), len(held_out)) == (1433, 364)
  names = [
    {source[i]['name'] for i in range(len(source))}
    for source in (train, held_out)
  ]
  assert len(names[0] | names[1]) == 1797
  labels = np.array([held_out[i]['label'] for i in range(len(held_out))])
  assert set(np.bincount(labels)) <= {35, 36, 37}


def test_digits_are_the_images_of_their_labels():
  train, digits = fake_data.make_source('digits'), datasets.load_digits()
  for i in (0, 100, 1000):
    example = train[i]
    index = int(example['name'].removeprefix('digits/'))
    assert example['label'] == digits.target[index]
    levels = example['image'] * (16 / 255)
    assert levels.shape == (8, 8, 3)
    for channel in range(3):
      np.testing.assert_allclose(
        levels[..., channel], digits.images[index], atol=0.04
      )


@pytest.mark.parametrize('name', ['digits', 'folder'])
def test_unknown_split_is_an_error(name, tmp_path):
  fake_data.write_class_folders(tmp_path, splits=())
  with pytest.raises(ValueError, match="'train' and 'validation', not 'x'"):
    fake_data.make_source(name, tmp_path, 'x')


def test_folder_reads_splits_and_classes(tmp_path):
  fake_data.write_class_folders(tmp_path, classes=('b', 'a'), per_class=2)
  (tmp_path / 'val' / 'a' / 'notes.txt').write_text('no image')
  (tmp_path / 'val' / 'a' / '.hidden.jpg').write_text('no image')
  (tmp_path / 'val' / '.cache').mkdir()
  source = fake_data.make_source('folder', tmp_path, 'validation')
  assert source.class_names == ('a', 'b')
  assert source.num_classes == 2
  examples = [source[i] for i in range(len(source))]
  assert [example['label'] for example in examples] == [0, 0, 1, 1]
  path = tmp_path / 'val' / 'b' / '000.jpg'
  assert examples[2]['name'] == str(path)
  assert examples[2]['image'] == path.read_bytes()


def test_folder_takes_a_split_by_its_own_name(tmp_path):
  fake_data.write_class_folders(tmp_path, splits=('train', 'val', 'test'))
  assert (
    '/test/' in fake_data.make_source('folder', tmp_path, 'test')[0]['name']
  )
  assert (
    '/val/'
    in fake_data.make_source('folder', tmp_path, 'validation')[0]['name']
  )


@pytest.mark.parametrize('splits', [(), ('train',)])
def test_folder_without_validation_holds_out_a_tenth(splits, tmp_path):
  fake_data.write_class_folders(tmp_path, splits=splits, per_class=11)
  names = [
    [source[i]['name'] for i in range(len(source))]
    for source in (
      fake_data.make_source('folder', tmp_path, 'train'),
      fake_data.make_source('folder', tmp_path, 'validation'),
    )
  ]
  assert [len(n) for n in names] == [27, 6]
  assert not set(names[0]) & set(names[1])
  root = tmp_path.joinpath(*splits)
  assert names[1][:2] == [
    str(root / 'ant' / '000.jpg'),
    str(root / 'ant' / '010.jpg'),
  ]


def test_folder_mistakes_are_named(tmp_path):
  with pytest.raises(ValueError, match='data.dir is empty'):
    fake_data.make_source('folder')
  with pytest.raises(FileNotFoundError, match=f'{tmp_path}/no is no folder'):
    fake_data.make_source('folder', tmp_path / 'no')
  with pytest.raises(ValueError, match=f'{tmp_path} holds no folders'):
    fake_data.make_source('folder', tmp_path)
  (tmp_path / 'ant').mkdir()
  with pytest.raises(ValueError, match=f'{tmp_path}/ant holds no image'):
    fake_data.make_source('folder', tmp_path)
  (tmp_path / 'ant' / 'a.jpg').write_bytes(b'')
  with pytest.raises(ValueError, match='ant holds a single image'):
    fake_data.make_source('folder', tmp_path)


def test_folder_splits_must_agree_on_the_classes(tmp_path):
  fake_data.write_class_folders(tmp_path)
  (tmp_path / 'val' / 'cat').rename(tmp_path / 'val' / 'dog')
  with pytest.raises(ValueError, match='missing: cat; unexpected: dog'):
    fake_data.make_source('folder', tmp_path, 'validation')
  with pytest.raises(ValueError, match="split 'test'.*it holds: train, val"):
    fake_data.make_source('folder', tmp_path, 'test')


@pytest.mark.parametrize('name', ['digits', 'folder'])
def test_sources_can_be_pickled(name, tmp_path):
  fake_data.write_class_folders(tmp_path)
  source = fake_data.make_source(name, tmp_path)
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == len(source)
  for key, value in source[0].items():
    np.testing.assert_array_equal(copy[0][key], value)
