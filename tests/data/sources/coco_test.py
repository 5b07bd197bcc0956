"""COCO: what is read, what is trained on, and what is refused."""

import copy
import json
import pathlib
import pickle

import ml_collections
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from acmix_jax.data import decode, pipeline, sources
from acmix_jax.data.sources import coco, coco_annotations, coco_format
from acmix_jax.data.transforms import detection, masks
from tests import fake_coco, fake_data

FIXTURES = pathlib.Path(__file__).parents[2] / 'fixtures' / 'detection'


def config(directory, **fields):
  return ml_collections.ConfigDict(
    {
      'name': 'coco',
      'dir': str(directory),
      'train_annotations': 'annotations/instances_train2017.json',
      'train_images': 'train2017',
      'eval_annotations': 'annotations/instances_val2017.json',
      'eval_images': 'val2017',
      'train_empty_images': False,
      'mask_size': 16,
      'canvases': ((64, 96), (96, 64)),
      **fields,
    }
  )


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  return fake_coco.write(tmp_path_factory.mktemp('coco'))


@pytest.fixture(scope='module')
def official():
  return json.loads((FIXTURES / 'coco_ground_truth.json').read_text())


class NoImages:
  origin = 'nowhere'

  def read(self, index):
    return b''

  def name(self, index):
    return str(index)


@pytest.mark.parametrize('stored', [False, True])
def test_images_and_objects_are_those_of_mmdetection(
  official, stored, tmp_path
):
  expected = json.loads((FIXTURES / 'coco_expected.json').read_text())
  annotations = coco_format.from_coco(official, 'file')
  if stored:
    annotations.save(tmp_path / 'stored.npz')
    annotations = coco_annotations.load(tmp_path / 'stored.npz')
  train = coco.Coco(annotations, NoImages(), training=True)
  ids = [train[index]['image_id'] for index in range(len(train))]
  assert ids == expected['train_image_ids']
  flags = np.array(expected['train_flags_width_over_height'])
  np.testing.assert_array_equal(train.canvases == 0, flags)
  everything = coco.Coco(annotations, NoImages(), training=False)
  assert len(everything) == len(expected['parsed'])
  for index in range(len(everything)):
    example = everything[index]
    parsed = expected['parsed'][str(example['image_id'])]
    boxes = np.array(parsed['boxes'], np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(example['boxes'], boxes)
    assert example['labels'].tolist() == parsed['labels']
    assert example['masks'].shape[0] == len(boxes)
  assert everything.class_names == ('person', 'car', 'train')


def test_content_survives_packing(official, tmp_path):
  packed = coco_format.from_coco(official, 'file')
  packed.save(tmp_path / 'stored.npz')
  again = coco_annotations.load(tmp_path / 'stored.npz').to_coco()
  assert again['images'] == official['images']
  assert again['categories'] == official['categories']
  for old, new in zip(
    official['annotations'], again['annotations'], strict=True
  ):
    if isinstance(old['segmentation'], dict):
      old = old | {
        'segmentation': coco_mask.frPyObjects(
          old['segmentation'], *old['segmentation']['size']
        )
      }
    assert new == old


def test_areas_of_drawn_masks(official):
  expected = json.loads((FIXTURES / 'coco_expected.json').read_text())
  packed = coco_format.from_coco(official, 'file')
  areas = [
    masks.draw(packed.segmentation(k), *packed.size(image)).sum()
    for k, image in enumerate(packed.images)
  ]
  np.testing.assert_array_equal(areas, expected['areas_from_masks'])


def test_files_are_read(directory):
  source = sources.make_source(config(directory), 'train')
  # All but the one without objects.
  assert len(source) == 11
  assert source.class_names == ('person', 'cup', 'car')
  written = json.loads(
    (directory / 'annotations/instances_train2017.json').read_text()
  )
  heights = [image['height'] for image in written['images'][:-1]]
  widths = [image['width'] for image in written['images'][:-1]]
  np.testing.assert_array_equal(source.canvases, np.less_equal(widths, heights))
  example = source[1]
  image = decode.decode(example['image'])
  assert image.shape[:2] == example['masks'].shape[1:] == (64, 48)
  x, y, w, h = written['annotations'][3]['bbox']
  np.testing.assert_allclose(
    example['boxes'][0], (x, y, x + w, y + h), rtol=1e-6
  )
  assert len(sources.make_source(config(directory), 'validation')) == 12
  # The crowd is no object, but its image is a training image.
  assert len(source[10]['labels']) == 2
  everything = config(directory, train_empty_images=True)
  assert len(sources.make_source(everything, 'train')) == 12


def test_source_is_small_and_can_be_sent_to_workers(directory):
  source = sources.make_source(config(directory), 'train')
  copied = pickle.loads(pickle.dumps(source))
  assert copied[3]['image'] == source[3]['image']
  np.testing.assert_array_equal(
    np.asarray(copied[3]['masks']), np.asarray(source[3]['masks'])
  )


def test_images_below_32_pixels_are_evaluated_but_not_trained_on(official):
  packed = coco_format.from_coco(official, 'file')
  small = packed.image_ids[packed.sizes.min(axis=1) < 32].tolist()
  train = coco.Coco(packed, NoImages(), training=True, empty_images=True)
  ids = [train[index]['image_id'] for index in range(len(train))]
  assert small == [500]
  assert sorted(ids + small) == packed.image_ids.tolist()


def wrong(change):
  data = copy.deepcopy(fake_coco.content())
  change(data, data['annotations'])
  return data


def set_entry(index, **fields):
  return lambda data, annotations: annotations[index].update(fields)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (set_entry(4, category_id=2), r'categories that are not.*5 \(category 2\)'),
    (set_entry(4, image_id=2), r'images that are not listed: 5 \(image 2\)'),
    (set_entry(4, id=1), 'annotations with the id of another: 1'),
    (set_entry(4, bbox=[1, 2, 3]), "whose 'bbox' is not x, y.*: 5"),
    (set_entry(4, bbox=[1, 2, 3, float('nan')]), "'bbox' is not x, y.*: 5"),
    (set_entry(4, segmentation='abc'), 'neither polygons.*nor an RLE.*: 5'),
    (set_entry(4, segmentation=[1.0] * 8), 'neither polygons.*: 5'),
    (
      set_entry(4, segmentation=[[1.0, float('inf')] * 4]),
      'corners that are not finite: 5',
    ),
    (
      set_entry(0, segmentation={'size': [64, 48], 'counts': [64 * 48]}),
      'RLE has another size than their image: 1',
    ),
    (
      set_entry(0, segmentation={'size': [48, 64], 'counts': [100, 7]}),
      'RLE does not fill their image: 1',
    ),
    (
      set_entry(0, segmentation={'size': [48, 64], 'counts': 'P137000b0'}),
      'RLE does not fill their image: 1',
    ),
    (lambda data, _: data['images'][2].pop('width'), "whose 'width'.*: 23"),
    (lambda data, _: data['images'][2].update(id='a'), "whose 'id'.*: a"),
    (
      lambda data, _: data.update(
        categories=[*fake_coco.CATEGORIES, {'id': 3, 'name': 'cup'}]
      ),
      r'categories with the name of another: 90 \(cup\), 3 \(cup\)',
    ),
    (lambda data, _: data.pop('categories'), "no list 'categories'"),
    (lambda data, _: data['images'].clear(), 'lists no images'),
  ],
)
def test_mistakes_are_named_with_their_ids(change, message):
  with pytest.raises(ValueError, match=message):
    coco_format.from_coco(wrong(change), 'some.json')


def test_all_mistakes_are_told_together():
  def change(data, annotations):
    for index in range(8):
      annotations[index]['category_id'] = 5
    annotations[9]['image_id'] = 1

  with pytest.raises(ValueError) as error:
    coco_format.from_coco(wrong(change), 'some.json')
  text = str(error.value)
  assert text.startswith('some.json holds mistakes')
  assert '1 (category 5), 2 (category 5)' in text and 'and 3 more' in text
  assert '10 (image 1)' in text


def test_annotations_without_pixels(directory, tmp_path, caplog):
  home = fake_coco.write(tmp_path / 'coco')
  path = home / 'annotations/instances_train2017.json'
  data = json.loads(path.read_text())
  data['annotations'][4]['segmentation'] = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]
  data['annotations'][5]['segmentation'] = []
  data['annotations'][6]['bbox'] = [5, 5, 0.5, 20]
  data['annotations'][7]['bbox'] = [-3.5, 5, 20, 20]
  path.write_text(json.dumps(data))
  with pytest.raises(
    ValueError, match=r'without polygons.*mask_size=0.*: 5, 6$'
  ):
    sources.make_source(config(home), 'train')
  with caplog.at_level('INFO'):
    source = sources.make_source(config(home, mask_size=0), 'train')
  assert 'half a corner, are left out of the annotations 5.' in caplog.text
  assert '2 without polygons or RLE: annotations 5, 6' in caplog.text
  assert 'a side below a pixel: annotations 7' in caplog.text
  assert '1 boxes that reach beyond their image, clipped: annotations 8' in (
    caplog.text
  )
  assert len(source[2]['labels']) == 2


@pytest.mark.parametrize('empty', ['missing', 'none', 'crowds'])
def test_a_training_file_without_objects_is_named(tmp_path, empty):
  home = fake_coco.write(tmp_path)
  path = home / 'annotations' / 'instances_train2017.json'
  content = json.loads(path.read_text())
  if empty == 'missing':
    del content['annotations']
  elif empty == 'none':
    content['annotations'].clear()
  else:
    for annotation in content['annotations']:
      annotation['iscrowd'] = 1
  path.write_text(json.dumps(content))
  message = f'{path} .data.train_annotations. holds no object to learn'
  with pytest.raises(ValueError, match=message):
    sources.make_source(config(home, train_empty_images=True), 'train')


def test_images_that_do_not_fit_are_named(tmp_path):
  home = fake_coco.write(tmp_path / 'coco')
  images = sorted((home / 'train2017').iterdir())
  turned = fake_data.picture(0, (48, 64))
  images[0].write_bytes(fake_data.encode(turned))
  with pytest.raises(ValueError, match=r'turned.*\(48 x 64, not 64 x 48\)'):
    sources.make_source(config(home), 'train')
  images[0].unlink()
  with pytest.raises(ValueError, match=f'not in .*: {images[0].name}'):
    sources.make_source(config(home), 'train')
  with pytest.raises(FileNotFoundError, match='nowhere is no folder'):
    sources.make_source(config(home, train_images='nowhere'), 'train')
  with pytest.raises(FileNotFoundError, match='train_annotations.*prepare'):
    sources.make_source(config(home, train_annotations='no.json'), 'train')


def test_batches_of_both_canvases(directory):
  data = config(
    directory,
    train_scales=((90, 60), (90, 40)),
    crop_scales=((900, 50),),
    crop_range=(20, 60),
    flip=0.5,
    eval_scale=(90, 60),
    max_objects=5,
  )
  batches = pipeline.train_batches(
    sources.make_source(data, 'train'),
    detection.train_transform(data),
    batch_size=2,
    seed=0,
    threads=1,
  )
  shapes = set()
  for _ in range(8):
    batch = next(batches)
    assert batch['mask'].all() and batch['valid'].any()
    assert batch['masks'].shape == (2, 5, 16, 2)
    shapes.add(batch['image'].shape)
  batches.close()
  assert shapes == {(2, 64, 96, 3), (2, 96, 64, 3)}


def test_every_image_is_evaluated_once(directory):
  data = config(directory, eval_scale=(90, 60))
  source = sources.make_source(data, 'validation')
  seen = []
  batches = pipeline.eval_batches(
    source, detection.eval_transform(data), batch_size=5, threads=1
  )
  for batch in batches:
    wide = batch['size'][:, 1] > batch['size'][:, 0]
    assert len(set(wide[batch['mask']])) == 1
    seen.extend(batch['image_id'][batch['mask']])
  assert sorted(seen) == sorted(source.annotations.image_ids)
  assert (
    sources.make_source(
      config(directory, canvases=((96, 96),)), 'validation'
    ).canvases
    is None
  )
