"""What is said about label files before training begins."""

import numpy as np
import pytest

from acmix_jax.data import label_audit
from acmix_jax.tools import prepare
from tests import fake_data

CLASSES = ('road', 'car', 'sky')


def make_source(home, numbers=(0, 1, 2), count=6, **fields):
  for folder in ('train', 'val'):
    fake_data.write_pairs(
      home / folder / 'images',
      home / folder / 'labels',
      count=count,
      numbers=numbers,
    )
  config = {
    'class_names': CLASSES,
    'ignored_label': 255,
    'zero_is_ignored': False,
  }
  return fake_data.make_source(
    'segmentation_folder', home, **{**config, **fields}
  )


def test_sound_labels_are_counted(tmp_path):
  source = make_source(tmp_path, (0, 1, 2, 255))
  report = label_audit.audit(source)
  stored = np.concatenate(
    [source[i]['label_map'].ravel() for i in range(len(source))]
  )
  np.testing.assert_array_equal(
    report.pixels, np.bincount(stored, minlength=256)
  )
  assert report.found == [0, 1, 2, 255]
  assert report.ignored_share == (stored == 255).mean()
  assert not report.problems and not report.remarks
  report.check()
  assert str(report) == (
    f'6 of 6 label files of {tmp_path}/train/images: 3 classes are numbered 0 '
    f'to 2 (ignored: 255). Found: 0 to 2, 255; '
    f'{report.ignored_share:.1%} of the pixels are ignored.'
  )


def test_sample_is_spread_over_the_files(tmp_path):
  source = make_source(tmp_path, count=7)
  read = []
  report = label_audit.audit(Recorder(source, read), limit=3)
  assert sorted(read) == [0, 3, 6]
  assert (report.files, report.total) == (3, 7)
  assert label_audit.audit(source, limit=50).files == 7


class Recorder:
  """A source that notes what is read."""

  def __init__(self, source, read):
    self._source, self._read = source, read

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def read(self, index):
    self._read.append(index)
    return self._source.read(index)


@pytest.mark.parametrize(
  'numbers, fields, problem',
  [
    ((0, 1, 2, 3), {}, 'labels 3, but 3 classes.*data.zero_is_ignored=True'),
    ((0, 1, 9), {}, 'labels 9, but.* set data.ignored_label=9'),
    ((0, 7, 9), {}, 'data.class_names must name 10'),
    ((0, 1, 255), {'ignored_label': 0}, 'set data.ignored_label=255'),
    ((0, 255), {}, 'hold 0 and 255 alone.*black and white need 1'),
    ((0,), {'zero_is_ignored': True}, 'all pixels are ignored.*hold 0 alone'),
    ((255,), {}, 'all pixels are ignored.*hold 255 alone, but 3 classes'),
  ],
)
def test_labels_of_another_convention(tmp_path, numbers, fields, problem):
  source = make_source(tmp_path, numbers, count=2, **fields)
  report = label_audit.audit(source)
  assert len(report.problems) == 1
  with pytest.raises(
    ValueError, match=f'(?s)2 of 2 label.*Problem: .*{problem}'
  ):
    report.check()


def test_unknown_labels_come_with_their_files(tmp_path):
  source = make_source(tmp_path, count=9)
  labels = tmp_path / 'train' / 'labels'
  for name in ('004.png', '007.png'):
    numbers = np.full((29, 39), 150, np.uint8)
    (labels / name).write_bytes(fake_data.encode_labels(numbers))
  (problem,) = label_audit.audit(source).problems
  assert problem.startswith(f'{labels}/004.png: it holds the labels 150, but')


@pytest.mark.parametrize(
  'numbers, fields, remark',
  [
    ((0, 1), {}, '1 of 3 classes do not occur: sky'),
    ((0, 255, 255, 255, 1, 2), {}, '50% of the pixels are ignored'),
    (
      (0, 1, 2),
      {'zero_is_ignored': True},
      '3, the last class, does not occur; if 0 is the first class, set',
    ),
  ],
)
def test_what_may_be_meant_is_remarked_upon(tmp_path, numbers, fields, remark):
  report = label_audit.audit(make_source(tmp_path, numbers, **fields))
  report.check()
  assert remark in str(report)


def test_damage_is_remarked_upon_and_forms_are_refused(tmp_path):
  source = make_source(tmp_path, count=6)
  images, labels = (tmp_path / 'train' / kind for kind in ('images', 'labels'))
  content = (images / '001.jpg').read_bytes()
  (images / '001.jpg').write_bytes(content[: len(content) // 2])
  (labels / '002.png').write_bytes(b'')
  size = np.zeros((7, 9), np.uint8)
  (labels / '003.png').write_bytes(fake_data.encode_labels(size))
  (images / '004.jpg').unlink()
  report = label_audit.audit(source)
  (remark,) = report.remarks
  for text in (
    '4 examples are damaged:',
    f'{images}/001.jpg: ',
    f'{labels}/002.png: the file is empty',
    f'{images}/003.jpg: the image is 29 x 40 pixels (height x width), its lab',
    f'{images}/004.jpg',
  ):
    assert text in remark
  report.check()
  colors = fake_data.encode(fake_data.picture(0), 'png')
  (labels / '005.png').write_bytes(colors)
  with pytest.raises(ValueError, match=f'{labels}/005.png: it holds colours'):
    label_audit.audit(source).check()
  for path in labels.iterdir():
    path.write_bytes(b'')
  with pytest.raises(ValueError, match='not one label file could be read'):
    label_audit.audit(source).check()


def run_check(name, directory, *options):
  return prepare.main([name, f'--check={directory}', *options])


def test_tool_checks_all_files(tmp_path, capsys):
  make_source(tmp_path, (0, 1, 2, 3), count=70)
  names = '--class_names=road,car,sky'
  assert run_check('segmentation_folder', tmp_path, names) == 1
  output = capsys.readouterr().out
  assert 'train: 70 of 70 label files' in output
  assert 'validation: 70 of 70 label files' in output
  assert output.count('set data.zero_is_ignored=True') == 2
  options = names, '--zero_is_ignored'
  assert run_check('segmentation_folder', tmp_path, *options) == 0
  options = f'{names},lamp', '--ignored_label=2'
  assert run_check('segmentation_folder', tmp_path, *options) == 0
  assert 'do not occur: sky' in capsys.readouterr().out
  next((tmp_path / 'val' / 'labels').iterdir()).unlink()
  assert run_check('segmentation_folder', tmp_path, *options) == 2
  assert '1 images have no label map' in capsys.readouterr().err


def test_tool_checks_ade20k(tmp_path, capsys):
  fake_data.write_ade20k(tmp_path)
  assert run_check('ade20k', tmp_path) == 0
  output = capsys.readouterr().out
  assert '6 of 6 label files' in output
  assert '147 of 150 classes do not occur: thing 3' in output
