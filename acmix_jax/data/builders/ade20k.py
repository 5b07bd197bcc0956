"""ADE20K's 150 classes from the unpacked archive into TFDS's storage.

TFDS has instance masks of other classes under the name scene_parse150, and no
builder of this task.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from acmix_jax.data.sources import ade20k, label_files


class Ade20k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the archive's files unchanged: JPEG images and PNG label maps.

  The label 0 is called 'other', and 1 to 150 are the classes, as distributed.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Train and validation.'}

  def __init__(self, *, source: str, **kwargs):
    """Lists the files.

    Args:
      source: the folder ADEChallengeData2016, or the one that holds it.
      **kwargs: arguments of `tfds.core.GeneratorBasedBuilder`, among them
        `data_dir`.

    Raises:
      FileNotFoundError: the archive is not unpacked there.
      ValueError: its images and label maps do not pair, or the like.
    """
    if ade20k.find_archive(source) is None:
      raise FileNotFoundError(
        f'{source} does not hold {ade20k.ARCHIVE} with images/ and '
        f'annotations/; unpack {ade20k.ARCHIVE}.zip there. It comes from '
        'http://sceneparsing.csail.mit.edu/.'
      )
    self._sources = {
      split: ade20k.open_ade20k(source, split)
      for split in ('train', 'validation')
    }
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    class_names = self._sources['train'].class_names
    return self.dataset_info_from_configs(
      description='ADE20K with the 150 classes of scene parsing.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'label_map': tfds.features.LabeledImage(
            labels=['other', *class_names], encoding_format='png'
          ),
          'file_name': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label_map'),
      homepage='http://sceneparsing.csail.mit.edu/',
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager
    return {
      split: self._generate_examples(source)
      for split, source in self._sources.items()
    }

  def _generate_examples(
    self, source: label_files.LabelFiles
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for index in range(len(source)):
      files = source.read(index)
      name = pathlib.PurePath(files.image_name).stem
      yield (
        name,
        {
          'image': files.image,
          'label_map': files.label,
          'file_name': name,
        },
      )
