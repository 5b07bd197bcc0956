"""Folders of images and label maps: layouts, pairs, and mistakes."""

import errno
import os
import pickle
import shutil

import numpy as np
import pytest

from acmix_jax.data import decode, label_maps, pipeline, sources
from acmix_jax.data.sources import files
from acmix_jax.data.transforms import segmentation
from tests import fake_data
from tests.data.transforms import segmentation_test

FIELDS = {
  'class_names': ('road', 'car', 'sky'),
  'ignored_label': 255,
  'zero_is_ignored': False,
}


def open_folder(directory, split='train', **fields):
  return fake_data.make_source(
    'segmentation_folder', directory, split, **{**FIELDS, **fields}
  )


def write(home, images='images', labels='labels', splits=('train', 'val')):
  for seed, split in enumerate(splits):
    fake_data.write_pairs(
      home / images.format(split), home / labels.format(split), seed=9 * seed
    )
  return home


def names(source):
  return [source[i]['name'] for i in range(len(source))]


@pytest.mark.parametrize(
  'images, labels',
  [
    ('images/{}', 'labels/{}'),
    ('images/{}', 'annotations/{}'),
    ('img_dir/{}', 'ann_dir/{}'),
    ('JPEGImages/{}', 'SegmentationClass/{}'),
    ('{}/images', '{}/masks'),
    ('{}/image/inner', '{}/label/inner'),
  ],
)
def test_usual_layouts(tmp_path, images, labels):
  write(tmp_path, images, labels, ('training', 'val'))
  for split, folder in (('train', 'training'), ('validation', 'val')):
    source = open_folder(tmp_path, split)
    assert names(source) == [
      str(tmp_path / images.format(folder) / f'{i:03}.jpg') for i in range(4)
    ]
    example = source[1]
    assert (
      example['image']
      == (tmp_path / images.format(folder) / '001.jpg').read_bytes()
    )
    rows = np.resize([2, 0, 1], 31)
    np.testing.assert_array_equal(
      example['label_map'], np.repeat(rows[:, None], 39, axis=1)
    )
    assert source.class_names == FIELDS['class_names']
    assert source.num_classes == 3
    assert source.sizes.tolist() == [[32, 40], [31, 39], [30, 38], [29, 40]]
    assert source.canvases is None


def test_folders_may_be_links_and_suffixes_upper_case(tmp_path):
  real, home = write(tmp_path / 'real', 'i/{}', 'l/{}'), tmp_path / 'home'
  for path in (*real.glob('i/train/*'), *real.glob('l/train/*')):
    path.rename(path.with_suffix(path.suffix.upper()))
  home.mkdir()
  (home / 'images').symlink_to(real / 'i')
  (home / 'labels').symlink_to('../real/l')
  for split in ('train', 'validation'):
    assert len(open_folder(home, split)) == 4


@pytest.mark.parametrize('layout', ['none', 'images/train', 'train/images'])
def test_without_validation_a_tenth_is_held_out(tmp_path, layout):
  folders = {
    'none': ('images', 'masks'),
    'images/train': ('images/train', 'masks/train'),
    'train/images': ('train/images', 'train/masks'),
  }[layout]
  fake_data.write_pairs(*(tmp_path / folder for folder in folders), count=12)
  parts = [names(open_folder(tmp_path, s)) for s in ('train', 'validation')]
  held_out = [str(tmp_path / folders[0] / f'{i:03}.jpg') for i in (0, 10)]
  assert parts[1] == held_out
  assert len(parts[0]) == 10 and not set(parts[0]) & set(held_out)
  with pytest.raises(ValueError, match='test'):
    open_folder(tmp_path, 'test')


def test_classes_may_begin_with_one(tmp_path):
  fake_data.write_pairs(
    tmp_path / 'images', tmp_path / 'labels', numbers=(0, 1, 2, 3)
  )
  source = open_folder(tmp_path, zero_is_ignored=True)
  assert set(np.unique(source[0]['label_map'])) == {0, 1, 2, 255}
  source = open_folder(tmp_path, class_names=tuple('abcde'), ignored_label=3)
  assert set(np.unique(source[0]['label_map'])) == {0, 1, 2, 255}


@pytest.mark.parametrize('names', ['road, car,sky', ('road,car,sky',)])
def test_class_names_may_be_one_string(tmp_path, names):
  fake_data.write_pairs(tmp_path / 'images', tmp_path / 'labels')
  source = open_folder(tmp_path, class_names=names)
  assert source.class_names == ('road', 'car', 'sky')


def test_what_does_not_pair_is_named(tmp_path):
  write(tmp_path, 'images/{}', 'labels/{}')
  images, labels = tmp_path / 'images/train', tmp_path / 'labels/train'
  (labels / '001.png').unlink()
  (images / '002.jpg').unlink()
  message = (
    rf'{images} and {labels} do not pair .* 1 images have no label map: '
    rf'{images}/001.jpg; 1 label maps have no image: {labels}/002.png'
  )
  with pytest.raises(ValueError, match=message):
    open_folder(tmp_path)
  assert len(open_folder(tmp_path, 'validation')) == 4
  shutil.copytree(images, images / 'more')
  with pytest.raises(ValueError, match='4 images have no label map'):
    open_folder(tmp_path)
  for i in range(11):
    shutil.copy(images / '000.jpg', images / f'x{i:02}.jpg')
  with pytest.raises(ValueError, match=r'15 images.*x05.jpg, \.\.\.; 1 label'):
    open_folder(tmp_path)


def test_files_of_one_name_are_named(tmp_path):
  write(tmp_path, 'images/{}', 'labels/{}')
  image = tmp_path / 'images' / 'train' / '001.jpg'
  shutil.copy(image, image.with_suffix('.png'))
  with pytest.raises(ValueError, match='001.png and .*001.jpg have the same'):
    open_folder(tmp_path)


def test_label_maps_that_are_no_png_are_named(tmp_path):
  images, labels = tmp_path / 'images', tmp_path / 'masks'
  fake_data.write_pairs(images, labels)
  for path in labels.iterdir():
    path.rename(path.with_suffix('.tif'))
  with pytest.raises(ValueError, match='masks holds no PNG.*4 others.*000.tif'):
    open_folder(tmp_path)


@pytest.mark.parametrize(
  'folders, message',
  [
    ((), 'neither folders of images.*It holds: no folders'),
    (('cat', 'dog'), 'neither folders of images.*It holds: cat, dog'),
    (('images/train',), 'no folder of labels.*It holds: images'),
    (('train/labels',), 'no folder of images.*It holds: labels'),
    (('images', 'masks', 'labels'), 'two folders of labels: labels and masks'),
    (('images/train', 'images/a', 'masks'), 'beside them: a'),
    (('images/train', 'images/val', 'masks/train'), "split 'validation', whi"),
    (
      ('images/train', 'images/test', 'masks'),
      "no folder for the split 'test'",
    ),
    (('images', 'masks'), 'images holds no image'),
  ],
)
def test_layouts_that_cannot_be_told_are_named(tmp_path, folders, message):
  for folder in folders:
    (tmp_path / folder).mkdir(parents=True)
  with pytest.raises(ValueError, match=message):
    open_folder(tmp_path, 'validation')


def test_other_mistakes_are_named(tmp_path):
  with pytest.raises(ValueError, match='data.dir is empty.*images/train/X.jpg'):
    open_folder('')
  with pytest.raises(FileNotFoundError, match='no is no folder; expected'):
    open_folder(tmp_path / 'no')
  for class_names in ((), ('a', 'a'), 'road,,car', ''):
    with pytest.raises(ValueError, match='data.class_names=.*must name each'):
      open_folder(tmp_path, class_names=class_names)
  write(tmp_path, 'images/{}', 'labels/{}', ('train',))
  (tmp_path / 'images' / 'val').symlink_to('train')
  (tmp_path / 'labels' / 'val').symlink_to('train')
  with pytest.raises(ValueError, match='are the same folder'):
    open_folder(tmp_path, 'validation')
  fake_data.write_pairs(tmp_path / 'x/images', tmp_path / 'x/masks', count=1)
  with pytest.raises(ValueError, match='holds a single image'):
    open_folder(tmp_path / 'x')


def test_source_can_be_pickled(tmp_path):
  source = open_folder(write(tmp_path, 'images/{}', 'labels/{}'))
  copy = pickle.loads(pickle.dumps(source))
  assert names(copy) == names(source)
  np.testing.assert_array_equal(copy.sizes, source.sizes)


def damage(folder):
  """Damages an image, its header, a label map, its size and its numbers."""
  image, label = folder / 'images', folder / 'labels'
  content = (image / '001.jpg').read_bytes()
  (image / '001.jpg').write_bytes(content[: len(content) // 2])
  (image / '002.jpg').write_bytes(b'no image')
  content = (label / '003.png').read_bytes()
  (label / '003.png').write_bytes(content[: len(content) // 2])
  size = np.zeros((7, 9), np.uint8)
  (label / '004.png').write_bytes(fake_data.encode_labels(size))
  numbers = np.full((32, 38), 7, np.uint8)
  (label / '005.png').write_bytes(fake_data.encode_labels(numbers))
  (image / '006.jpg').unlink()
  (image / '006.jpg').symlink_to('nowhere')


def make_damaged(tmp_path, split):
  """A data set that is damaged after it was opened."""
  for folder in ('train', 'val'):
    fake_data.write_pairs(
      tmp_path / folder / 'images', tmp_path / folder / 'labels', count=9
    )
  source = open_folder(tmp_path, split)
  for folder in ('train', 'val'):
    damage(tmp_path / folder)
  return source


def test_damaged_examples_are_replaced_in_training(tmp_path, caplog):
  source = make_damaged(tmp_path, 'train')
  batches = pipeline.train_batches(
    source,
    segmentation.train_transform(segmentation_test.make_config()),
    batch_size=9,
    seed=0,
  )
  for _ in range(2):
    batch = next(batches)
    assert batch['mask'].all()
    assert batch['image'].shape == (9, 64, 64, 3)
    assert batch['label_map'].shape == (9, 64, 64)
  assert batches.damaged == 6
  batches.close()
  labels = tmp_path / 'train' / 'labels'
  for text in (
    'images/001.jpg: ',
    'images/002.jpg: no image of a known format',
    f'{labels}/003.png: ',
    '004.jpg: the image is 32 x 39 pixels (height x width), its label map 7',
    f'{labels}/005.png: it holds the labels 7, but 3 classes are numbered',
    'images/006.jpg',
  ):
    assert text in caplog.text


def test_damaged_examples_are_masked_in_evaluation(tmp_path):
  source = make_damaged(tmp_path, 'validation')
  config = segmentation_test.make_config(eval_multiple=16)
  numbers, canvases = segmentation.eval_canvases(config, source.sizes)
  batches = pipeline.eval_batches(
    sources.OnCanvases(source, numbers),
    segmentation.eval_transform(config, canvases),
    batch_size=2,
  )
  counted = 0
  for batch in batches:
    inputs, label = batch['image'].shape[1:3], batch['label_map'].shape[1:]
    assert segmentation.Canvas((inputs,), label) in canvases
    counted += batch['mask'].sum()
    assert (batch['label_map'][~batch['mask']] == 255).all()
  assert counted == 9 - 6
  assert batches.damaged == 6


def test_label_file_without_classes_ends_the_run(tmp_path):
  source = open_folder(write(tmp_path, '{}/images', '{}/labels'))
  path = tmp_path / 'train' / 'labels' / '002.png'
  path.write_bytes(fake_data.encode(fake_data.picture(0), 'png'))
  batches = pipeline.train_batches(
    source,
    segmentation.train_transform(segmentation_test.make_config()),
    batch_size=4,
    seed=0,
  )
  with pytest.raises(label_maps.LabelError, match=f'{path}: it holds colours'):
    next(batches)


def test_size_of_an_image_is_read_from_its_header(tmp_path):
  path = tmp_path / 'a.jpg'
  content = fake_data.encode(fake_data.picture(0, (41, 30)), 'rotated')
  path.write_bytes(content[:-50])
  assert files.read_size(os.fspath(path)) == (30, 41)
  for damaged in (b'nothing', content[:200]):
    path.write_bytes(damaged)
    with pytest.raises(decode.DecodeError):
      files.read_size(os.fspath(path))


def test_failing_disk_is_not_taken_for_damage(tmp_path, monkeypatch):
  source = open_folder(write(tmp_path, '{}/images', '{}/labels'))

  def fail(path):
    raise OSError(errno.EIO, 'Input/output error', path)

  monkeypatch.setattr(decode.Image, 'open', fail)
  with pytest.raises(OSError, match='Input/output error.*000.jpg'):
    _ = source.sizes
