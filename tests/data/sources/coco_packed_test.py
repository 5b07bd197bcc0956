"""COCO, packed and checked by tools.prepare."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from acmix_jax.data import sources
from acmix_jax.data.builders import coco
from acmix_jax.tools import prepare
from tests import fake_coco, fake_data
from tests.data.sources import coco_test


@pytest.mark.parametrize('shards', [1, 3])
def test_packed_is_unpacked(shards, tmp_path):
  home = fake_coco.write(tmp_path / 'coco')
  # An order that is neither that of the ids nor that of the names.
  path = home / 'annotations/instances_train2017.json'
  data = json.loads(path.read_text())
  data['images'] = data['images'][5:] + data['images'][:5]
  path.write_text(json.dumps(data))
  assert prepare.main(['coco', f'--check={home}']) == 0
  builder = coco.Coco2017(source=str(home), data_dir=tmp_path / 'packed')
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=shards)
  )
  assert builder.info.splits['train'].num_shards == shards
  for split in ('train', 'validation'):
    unpacked = sources.make_source(coco_test.config(home), split)
    packed = sources.make_source(coco_test.config(tmp_path / 'packed'), split)
    assert len(packed) == len(unpacked)
    assert packed.class_names == unpacked.class_names
    np.testing.assert_array_equal(packed.canvases, unpacked.canvases)
    assert packed.annotations.to_coco() == unpacked.annotations.to_coco()
    for index in range(len(packed)):
      first, second = packed[index], unpacked[index]
      assert first.pop('name') != second.pop('name')
      for key in first:
        np.testing.assert_array_equal(first[key], second[key], key)


def test_what_does_not_fit_is_found_before_anything_is_written(
  tmp_path, capsys
):
  home = fake_coco.write(tmp_path / 'coco', images=100)
  # No image of the sample that is looked at before a training.
  image = sorted((home / 'val2017').iterdir())[1]
  image.write_bytes(fake_data.encode(fake_data.picture(0, (30, 20))))
  assert prepare.main(['coco', f'--check={home}']) == 1
  printed = capsys.readouterr().out
  assert '297 objects of 3 classes, 1 of them crowds' in printed
  assert f'{image.name} (30 x 20, not 48 x 64)' in printed
  options = [f'--source={home}', f'--data_dir={tmp_path / "packed"}']
  assert prepare.main(['coco2017', *options]) == 2
  assert image.name in capsys.readouterr().err
  (home / 'val2017').rename(home / 'images')
  assert prepare.main(['coco', f'--check={home}']) == 2
  assert 'val2017 is no folder' in capsys.readouterr().err
  options = ['--boxes_only', '--eval_images=images']
  assert prepare.main(['coco', f'--check={home}', *options]) == 1
  assert not (tmp_path / 'packed').exists()
