"""Folders of images: splits, classes, what is passed over, and mistakes."""

import logging
import os
import shutil
import socket
import unicodedata

import pytest

from acmix_jax.data import sources
from acmix_jax.data.sources import listing, splits
from tests import fake_data


def names(source):
  return [source[i]['name'] for i in range(len(source))]


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


@pytest.mark.parametrize(
  'name, split',
  [
    ('train', 'train'),
    ('Train', 'train'),
    ('training_set', 'train'),
    ('train2017', 'train'),
    ('valid', 'validation'),
    ('VALIDATION', 'validation'),
    ('dev', 'validation'),
    ('eval', 'validation'),
    ('Val Images', 'validation'),
    ('testset', 'test'),
    ('bullet train', None),
    ('trains', None),
    ('latest', None),
    ('dataset', None),
    ('train[:99%]', None),
    ('7', None),
  ],
)
def test_names_of_splits(name, split):
  assert splits.split_of(name) == split


@pytest.mark.parametrize('train', ['train', 'Train', 'TRAINING'])
@pytest.mark.parametrize(
  'other', ['valid', 'Validation', 'dev', 'eval', 'val', 'Test', 'testing_set']
)
def test_usual_names_of_splits_are_found_and_logged(
  train, other, tmp_path, caplog
):
  fake_data.write_class_folders(tmp_path, splits=(train, other), per_class=2)
  caplog.set_level(logging.INFO)
  for split, folder in (('train', train), ('validation', other)):
    source = fake_data.make_source('folder', tmp_path, split)
    assert len(source) == 6
    assert all(n.startswith(str(tmp_path / folder)) for n in names(source))
  assert caplog.messages == [
    f"Split 'train': 6 images of 3 classes from {tmp_path / train}.",
    f"Split 'validation': 6 images of 3 classes from {tmp_path / other}.",
  ]


def test_held_out_split_is_said_so(tmp_path, caplog):
  fake_data.write_class_folders(tmp_path, splits=('train',), per_class=11)
  caplog.set_level(logging.INFO)
  fake_data.make_source('folder', tmp_path, 'validation')
  (message,) = caplog.messages
  assert "'validation': 6 images" in message
  assert f'{tmp_path}/train, where each tenth image' in message


def test_validation_alone_is_enough_to_evaluate(tmp_path):
  fake_data.write_class_folders(tmp_path, splits=('Val',))
  assert len(fake_data.make_source('folder', tmp_path, 'validation')) == 12
  with pytest.raises(ValueError, match="split 'train'; it holds: Val"):
    fake_data.make_source('folder', tmp_path, 'train')


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
@pytest.mark.parametrize(
  'folders, message',
  [
    (('train', 'extra'), r'splits \(train\) and beside them: extra'),
    (('train', 'val', 'extra'), r'\(train, val\) and beside them: extra'),
    (('test', 'cat', 'dog'), r'\(test\) and beside them: cat, dog'),
    (('train', 'val', 'valid'), "two .* 'validation': val and valid"),
    (('Train', 'train', 'val'), "two .* 'train': Train and train"),
  ],
)
def test_folders_that_may_be_splits_or_not_are_named(
  folders, message, split, tmp_path
):
  fake_data.write_class_folders(tmp_path, splits=folders)
  with pytest.raises(ValueError, match=f'{tmp_path} holds .*{message}'):
    fake_data.make_source('folder', tmp_path, split)


def test_classes_that_look_like_splits_are_named(tmp_path):
  fake_data.write_class_folders(tmp_path / 'train', splits=('Train', 'Test'))
  with pytest.raises(ValueError, match='holds Test, Train, which look like'):
    fake_data.make_source('folder', tmp_path)


def test_splits_within_a_class_are_named(tmp_path):
  fake_data.write_class_folders(tmp_path / 'data')
  with pytest.raises(ValueError, match='data is taken for a class.*train, val'):
    fake_data.make_source('folder', tmp_path)


def test_one_folder_for_two_splits_is_an_error(tmp_path):
  fake_data.write_class_folders(tmp_path, splits=('train',))
  (tmp_path / 'val').symlink_to('train')
  with pytest.raises(ValueError, match='train are the same folder'):
    fake_data.make_source('folder', tmp_path, 'validation')


def test_two_names_of_one_validation_folder_are_one(tmp_path):
  fake_data.write_class_folders(tmp_path)
  (tmp_path / 'validation').symlink_to('val')
  assert len(fake_data.make_source('folder', tmp_path, 'validation')) == 12


def test_litter_is_passed_over_and_counted(tmp_path, caplog, monkeypatch):
  fake_data.write_class_folders(tmp_path, per_class=1)
  ant = tmp_path / 'train' / 'ant'
  image = ant / '000.jpg'
  for folder in (
    '.ipynb_checkpoints',
    '.thumbnails',
    '@eaDir',
    '__MACOSX',
    '#recycle',
  ):
    for parent in (tmp_path, tmp_path / 'train', ant):
      (parent / folder).mkdir()
      shutil.copy(image, parent / folder / 'x.jpg')
  for name in ('._x.jpg', '.DS_Store', 'Thumbs.db', '~x.jpg', 'desktop.ini'):
    shutil.copy(image, ant / name)
  for name in ('notes.txt', 'more.txt', 'photo.heic', 'LICENSE', 'clip.mpg'):
    shutil.copy(image, ant / name)
  shutil.copy(image, tmp_path / 'train' / 'loose.jpg')
  os.mkfifo(ant / 'pipe.jpg')
  (ant / 'gone.jpg').symlink_to('nowhere')
  (ant / 'self.jpg').symlink_to('self.jpg')
  with socket.socket(socket.AF_UNIX) as server:
    monkeypatch.chdir(ant)  # The paths of sockets are short.
    server.bind('socket.jpg')
  caplog.set_level(logging.INFO)
  source = fake_data.make_source('folder', tmp_path)
  assert source.class_names == ('ant', 'bee', 'cat')
  assert names(source)[0] == str(image)
  assert len(source) == 3
  assert caplog.messages[0] == (
    f'Passed over in {tmp_path}/train: hidden or left by other programs (10), '
    'images beside the listed folders (1), no regular files (4), '
    'of suffix .heic (1), of suffix .mpg (1), of suffix .txt (2), '
    'without a suffix (1).'
  )


@pytest.mark.parametrize(
  'suffix', ['.JPG', '.jfif', '.webp', '.jp2', '.pgm', '.TIF', '.avif', '.qoi']
)
def test_suffixes_are_those_of_pillow(suffix, tmp_path):
  fake_data.write_class_folders(tmp_path, splits=('train', 'val'))
  path = tmp_path / 'val' / 'ant' / '000.jpg'
  path.rename(path.with_suffix(suffix))
  found = names(fake_data.make_source('folder', tmp_path, 'val'))
  assert str(path.with_suffix(suffix)) in found
  assert not {'.pdf', '.mpg', '.h5', '.eps'} & listing.image_suffixes()


def test_each_folder_is_listed_once_whatever_links_lead_to_it(tmp_path, caplog):
  home = tmp_path / 'data'
  fake_data.write_class_folders(home, per_class=2)
  fake_data.write_class_folders(
    tmp_path / 'more', splits=(), classes=('a', 'b'), per_class=1
  )
  ant, bee = home / 'train' / 'ant', home / 'train' / 'bee'
  for number, target in enumerate(
    (
      '.',
      '..',
      '../..',
      '../../..',
      '/',
      '../cat',
      '../../val',
      '../../val/bee',
    )
  ):
    (ant / f'link{number}').symlink_to(target)
  (ant / 'more').symlink_to(tmp_path / 'more' / 'a')
  (ant / 'again').symlink_to(tmp_path / 'more' / 'a')
  (bee / 'more').symlink_to(tmp_path / 'more')
  (tmp_path / 'more' / 'b' / 'up').symlink_to('..')
  (bee / '9.jpg').symlink_to('000.jpg')
  caplog.set_level(logging.INFO)
  source = fake_data.make_source('folder', home)
  files = [os.path.relpath(name, home / 'train') for name in names(source)]
  assert files == [
    'ant/000.jpg',
    'ant/001.jpg',
    'ant/again/000.jpg',
    'bee/000.jpg',
    'bee/001.jpg',
    'bee/9.jpg',
    'bee/more/b/000.jpg',
    'cat/000.jpg',
    'cat/001.jpg',
  ]
  assert 'links to folders that are listed already (11)' in caplog.text


def test_links_may_make_up_the_whole_data_set(tmp_path):
  real = fake_data.write_class_folders(tmp_path / 'real', splits=('x', 'y'))
  home = tmp_path / 'home'
  for split, folder in (('train', 'x'), ('val', 'y')):
    (home / split).mkdir(parents=True)
    for name in ('ant', 'bee'):
      (home / split / name).symlink_to(real / folder / name)
  assert len(fake_data.make_source('folder', home, 'train')) == 8
  assert len(fake_data.make_source('folder', home, 'validation')) == 8


@pytest.mark.parametrize('target', ['ant', '.', '../..', 'ant/inner'])
def test_class_that_is_part_of_another_is_an_error(target, tmp_path):
  fake_data.write_class_folders(tmp_path, splits=('train',))
  (tmp_path / 'train' / 'ant' / 'inner').mkdir()
  (tmp_path / 'train' / 'link').symlink_to(target)
  with pytest.raises(ValueError, match='is, or holds, another folder'):
    fake_data.make_source('folder', tmp_path)


def test_class_names_are_compared_in_their_normal_form(tmp_path):
  fake_data.write_class_folders(
    tmp_path, classes=('caf\u00e9', 'zoo'), splits=('train',)
  )
  decomposed = unicodedata.normalize('NFD', 'caf\u00e9')
  fake_data.write_class_folders(
    tmp_path, classes=(decomposed, 'zoo'), splits=('val',)
  )
  train = fake_data.make_source('folder', tmp_path, 'train')
  val = fake_data.make_source('folder', tmp_path, 'validation')
  assert train.class_names == val.class_names == ('caf\u00e9', 'zoo')
  assert decomposed in names(val)[0]
  (tmp_path / 'train' / decomposed).mkdir()
  with pytest.raises(ValueError, match='differ only in their Unicode form'):
    fake_data.make_source('folder', tmp_path, 'train')


def test_paths_of_either_type_and_of_the_home_folder(tmp_path, monkeypatch):
  fake_data.write_class_folders(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  for directory in (tmp_path, str(tmp_path), '~'):
    assert len(sources.Folder(directory, 'train')) == 12
