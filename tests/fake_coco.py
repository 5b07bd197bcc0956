"""A small data set in the layout of COCO 2017, for tests."""

import json
import pathlib
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tests import fake_data

CATEGORIES = [
  {'id': 1, 'name': 'person'},
  {'id': 90, 'name': 'cup'},
  {'id': 7, 'name': 'car'},
]
# Heights and widths: wide, upright, square and narrow images.
SIZES = ((48, 64), (64, 48), (56, 56), (60, 80), (80, 50), (70, 100))


def content(
  images: int = 12, seed: int = 0, objects: int = 3
) -> dict[str, list[dict[str, Any]]]:
  """A file in COCO format: polygons, RLE of both kinds and a crowd.

  The last image has no objects.
  """
  rng = np.random.default_rng(seed)
  listed, annotations = [], []
  for index in range(images):
    height, width = SIZES[index % len(SIZES)]
    image_id = 10 * index + seed + 3
    name = f'{image_id:012}.jpg'
    listed.append(
      {'id': image_id, 'file_name': name, 'height': height, 'width': width}
    )
    for k in range(objects if index < images - 1 else 0):
      annotations.append(
        {'id': len(annotations) + 1, 'image_id': image_id}
        | _annotation(rng, height, width, 'polygons' if k else 'rle')
      )
  annotations[-1] |= _crowd(*SIZES[(images - 2) % len(SIZES)])
  return {
    'images': listed,
    'annotations': annotations,
    'categories': CATEGORIES,
  }


def _annotation(rng, height, width, kind):
  x, y = rng.uniform(0, 0.5, 2) * (width, height)
  w, h = rng.uniform(0.2, 0.45, 2) * (width, height)
  angles = np.linspace(0, 2 * np.pi, 13)[:-1]
  corners = np.stack(
    [x + w * (1 + np.cos(angles)) / 2, y + h * (1 + np.sin(angles)) / 2]
  )
  polygon = np.round(corners.T.ravel(), 2).tolist()
  rle = coco_mask.frPyObjects([polygon], height, width)[0]
  shape = [polygon]
  if kind == 'rle':
    shape = {**rle, 'counts': rle['counts'].decode()}
  return {
    'category_id': int(rng.choice([c['id'] for c in CATEGORIES])),
    'bbox': np.round([x, y, w, h], 2).tolist(),
    'area': int(coco_mask.area(rle)),
    'iscrowd': 0,
    'segmentation': shape,
  }


def _crowd(height, width):
  run = height * width // 2
  counts = [run, height * width - run]
  return {
    'iscrowd': 1,
    'segmentation': {'size': [height, width], 'counts': counts},
  }


def write(directory: pathlib.Path, images: int = 12) -> pathlib.Path:
  """Writes train2017, val2017 and annotations; returns the folder."""
  (directory / 'annotations').mkdir(parents=True)
  for seed, split in enumerate(('train2017', 'val2017')):
    data = content(images, seed)
    path = directory / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(data))
    (directory / split).mkdir()
    for image in data['images']:
      size = image['width'], image['height']
      pixels = fake_data.picture(image['id'], size)
      file = directory / split / image['file_name']
      file.write_bytes(fake_data.encode(pixels))
  return directory
