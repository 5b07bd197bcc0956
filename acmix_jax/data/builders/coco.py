"""COCO 2017 from its unpacked archives into TFDS's storage.

The annotations become arrays beside the images, which are read in a second; of
the JSON file every process would take ten. TFDS's own builder of COCO leaves
out the polygons.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from acmix_jax.data.sources import (
  coco,
  coco_annotations,
  coco_audit,
  coco_format,
)


class Coco2017(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the image files unchanged, in the order of the annotations."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Train and validation.'}

  def __init__(self, *, source: str, **kwargs):
    """Reads the annotations and compares them with all images.

    Args:
      source: the folder that holds annotations/, train2017/ and val2017/.
      **kwargs: arguments of `tfds.core.GeneratorBasedBuilder`, among them
        `data_dir`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the annotations hold mistakes or do not fit the images.
    """
    self._annotations, self._images = {}, {}
    for split, paths in coco.OFFICIAL.items():
      path, folder = (os.path.join(source, part) for part in paths)
      annotations = coco_format.read(path)
      coco_audit.check(
        annotations,
        folder,
        path,
        with_masks=True,
        training=split == 'train',
        all_sizes=True,
      )
      self._annotations[split] = annotations
      self._images[split] = coco.ImageFiles(folder, annotations.file_names)
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description='COCO 2017; the annotations are in files beside the images.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'image_id': tfds.features.Scalar(dtype=np.int64),
        }
      ),
      homepage='https://cocodataset.org/',
      disable_shuffling=True,
    )

  def download_and_prepare(self, **kwargs) -> None:
    """Writes the images, then the annotations."""
    super().download_and_prepare(**kwargs)
    for split, annotations in self._annotations.items():
      annotations.save(coco.packed_path(self.data_dir, split))

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager
    return {
      split: self._generate_examples(annotations, self._images[split])
      for split, annotations in self._annotations.items()
    }

  def _generate_examples(
    self, annotations: coco_annotations.Annotations, images: coco.Images
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, image_id in enumerate(annotations.image_ids.tolist()):
      yield index, {'image': images.read(index), 'image_id': image_id}
