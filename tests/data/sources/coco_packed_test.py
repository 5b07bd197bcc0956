"""COCO, packed: what is read is what was in the files."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from acmix_jax.data import sources
from acmix_jax.data.builders import coco
from tests import fake_coco
from tests.data.sources import coco_test


@pytest.mark.parametrize('shards', [1, 3])
def test_packed_is_unpacked(shards, tmp_path):
  home = fake_coco.write(tmp_path / 'coco')
  # An order that is neither that of the ids nor that of the names.
  path = home / 'annotations/instances_train2017.json'
  data = json.loads(path.read_text())
  data['images'] = data['images'][5:] + data['images'][:5]
  path.write_text(json.dumps(data))
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


def test_annotations_that_do_not_fit_are_refused(tmp_path):
  home = fake_coco.write(tmp_path / 'coco')
  (home / 'val2017').rename(home / 'val2014')
  with pytest.raises(FileNotFoundError, match='val2017 is no folder'):
    coco.Coco2017(source=str(home), data_dir=tmp_path / 'packed')
