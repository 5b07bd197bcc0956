r"""Draws what a trained model says of images.

    acmix-jax predict [CONFIG] WORKDIR IMAGE [IMAGE ...] \
        --out=DIR [--config.FIELD=VALUE ...]

Of each image DIR gets NAME.png: for classification the image with the names and
probabilities of the likeliest classes, for segmentation the image under the
colours of its classes with a legend, for detection the image with the boxes,
names, scores (of at least 30 %) and masks of the objects, the surest on top.
Segmentation also writes NAME_labels.png, a palette PNG of the size of the image
whose values are the classes from 0 (add 1 for the servers that count ADE20K's
classes from 1). A line for each image says the same in words.

WORKDIR is the folder of a training, one of its checkpoints
(WORKDIR/checkpoints/STEP) or a .safetensors file. Weights are chosen as for
acmix-jax eval: those of the best checkpoint, moving averages where there
are any and config.load_average is set. Classes have the names that were kept
with the weights. Without CONFIG, the name of a recipe or FILE.py with its
:ARGUMENT, the config that the training recorded is used; with it, fields can be
set.

Images of any size and format are prepared as evaluation prepares them. A
segmenter is compiled once for each size of the images, a detector for each
canvas, a classifier, which sees squares of one size, once in all.

Exit status: 1 if images could not be read, which are named; 2 if nothing could
be done.

In a notebook, where the picture is shown:

    from acmix_jax.tools import predict
    predictor = predict.Predictor('WORKDIR')
    predictor('cat.jpg').draw()
"""

import argparse
import collections
import dataclasses
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from acmix_jax import lookup, tasks, weights
from acmix_jax.data import decode
from acmix_jax.metrics import paste
from acmix_jax.tools import config_file, pictures
from acmix_jax.train import build, recorded_config
from acmix_jax.weights import files

_Outputs = dict[str, np.ndarray]

# Classes that the words about an image name.
_NAMED = 3
# Least score of an object that is shown.
_LEAST_SCORE = 0.3


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a model says of an image.

    prediction.draw().save('cat.png')

  Attributes:
    image: uint8 RGB [h, w, 3].
    class_names: Names of the classes by label.
    outputs: What `tasks.Task.infer` returns, of this image: 'probabilities',
      float [k]; or 'label_map', int [h, w]; or 'boxes', [n, 4], with 'scores',
      'labels', 'valid' and perhaps 'masks', [n, m, m].
  """

  image: np.ndarray
  class_names: tuple[str, ...]
  outputs: _Outputs

  def draw(self) -> Image.Image:
    """A picture of the image with what the model says of it."""
    return self._kind.draw(self.image, self.outputs, self.class_names)

  def files(self) -> dict[str, Image.Image]:
    """What the tool writes: pictures by the ends of their files' names."""
    written = {'.png': self.draw()}
    if 'label_map' in self.outputs:
      label_map = self.outputs['label_map']
      written['_labels.png'] = pictures.label_image(label_map)
    return written

  def __str__(self) -> str:
    """The likeliest, or most frequent, classes; or the objects."""
    return self._kind.words(self.outputs, self.class_names)

  @property
  def _kind(self):
    (name,) = self.outputs.keys() & _KINDS.keys()
    return _KINDS[name]


class _Kind(NamedTuple):
  """How the outputs of a task are shown.

  Attributes:
    draw: Picture of (image, outputs, class names).
    words: Line of text about (outputs, class names).
  """

  draw: Callable[[np.ndarray, _Outputs, Sequence[str]], Image.Image]
  words: Callable[[_Outputs, Sequence[str]], str]


def _in_words(shares, names):
  """The classes of the greatest shares."""
  return ', '.join(
    f'{names[i]} {100 * shares[i]:.1f} %'
    for i in np.argsort(-shares, kind='stable')[:_NAMED]
    if shares[i] > 0
  )


def _shown(outputs: _Outputs) -> _Outputs:
  """The objects that are sure enough, the surest first."""
  kept = outputs['valid'] & (outputs['scores'] >= _LEAST_SCORE)
  return {key: x[kept] for key, x in outputs.items()}


def _draw_objects(image, outputs, names):
  # What is drawn last lies on top.
  shown = {key: x[::-1] for key, x in _shown(outputs).items()}
  masks = shown.get('masks')
  if masks is not None:
    rles = paste.paste(masks, shown['boxes'], image.shape[:2])
    masks = np.array([coco_mask.decode(rle) for rle in rles], bool)
  return pictures.draw_objects(
    image, shown['boxes'], shown['labels'], names, shown['scores'], masks
  )


def _objects_in_words(outputs, names):
  shown = _shown(outputs)
  return ', '.join(
    f'{names[label]} {100 * score:.1f} %'
    for label, score in zip(shown['labels'], shown['scores'], strict=True)
  )


# By the output that no other task has.
_KINDS = {
  'probabilities': _Kind(
    lambda image, outputs, names: pictures.draw_probabilities(
      image, outputs['probabilities'], names
    ),
    lambda outputs, names: _in_words(outputs['probabilities'], names),
  ),
  'label_map': _Kind(
    lambda image, outputs, names: pictures.draw_label_map(
      image, outputs['label_map'], names
    ),
    lambda outputs, names: _in_words(
      pictures.label_shares(outputs['label_map'], len(names)), names
    ),
  ),
  'boxes': _Kind(_draw_objects, _objects_in_words),
}


class Predictor:
  """A trained model that says what is in images.

  Attributes:
    class_names: Names of the classes by label, as kept with the weights; 'class
      0', ... where none were.
    path: The checkpoint or file with the weights.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    config: ml_collections.ConfigDict | None = None,
  ):
    """Reads the weights; the data set is not needed.

    Args:
      workdir: folder of a training, or what else `weights.find` takes.
      config: see configs/common.py; None: the one that the training recorded.

    Raises:
      DamagedError: the checkpoint is damaged.
      ValueError: there are no such weights, they do not fit the config, or
        there is no config.
    """
    self.path = weights.find(workdir)
    self._task = _make_task(self.path, config)
    config = self._task.config
    # On the one device that predicts.
    variables = weights.assign(
      jax.eval_shape(self._task.init, jax.random.key(0)),
      weights.load_weights(self.path, average=config.load_average),
    )
    self._params = variables.pop('params')
    self._model_state = variables
    names = weights.load_description(self.path).get('class_names')
    if not names:
      names = [f'class {i}' for i in range(config.model.num_classes)]
    self.class_names = tuple(names)
    self._infer = jax.jit(build.said('prediction', self._task.infer))

  def __call__(self, image: str | os.PathLike | np.ndarray) -> Prediction:
    """Predicts.

    Args:
      image: path of an image file, or uint8 RGB [h, w, 3].

    Raises:
      DecodeError: the file is no image, or damaged; names it.
      OSError: the file cannot be read.
      ValueError: the array is no image.
    """
    if not isinstance(image, np.ndarray):
      image = _read(pathlib.Path(image).expanduser())
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise ValueError(
        f'An image is uint8 [h, w, 3]; this is {image.dtype} '
        f'{list(image.shape)}.'
      )
    batch = self._task.inference_batch(image)
    outputs = jax.device_get(
      self._infer(self._params, self._model_state, batch)
    )
    return Prediction(
      image, self.class_names, {key: rows[0] for key, rows in outputs.items()}
    )


def _make_task(path, config):
  if config is not None:
    return tasks.make_task(config)
  if path.parent.name != files.CHECKPOINTS:
    raise ValueError(
      f'{path} belongs to no workdir, whose config would be used; give the '
      'config.'
    )
  workdir = path.parents[1]
  try:
    config = recorded_config.load(workdir)
  except FileNotFoundError as error:
    raise ValueError(
      f'{workdir} has no config.json; give the config.'
    ) from error
  try:
    return tasks.make_task(config)
  except lookup.UnknownName:
    raise
  except (AttributeError, KeyError) as error:
    # A workdir of an earlier version of the project.
    raise ValueError(
      f'The config.json of {workdir} lacks a field that is needed now: {error}.'
      ' Give the config.'
    ) from error


def _read(path):
  try:
    return decode.decode(path.read_bytes())
  except decode.DecodeError as error:
    raise decode.DecodeError(f'{path}: {error}') from error


def _stems(paths: Sequence[pathlib.Path]) -> list[str]:
  """Names of the files without their ends; a second 'cat' is 'cat-2'."""
  counts, stems = collections.Counter(), []
  for path in paths:
    counts[path.stem] += 1
    number = counts[path.stem]
    stems.append(path.stem if number == 1 else f'{path.stem}-{number}')
  return stems


def predict(
  predictor: Predictor, paths: Sequence[pathlib.Path], out: pathlib.Path
) -> int:
  """Writes the pictures of images into a folder, and prints what they show.

  Returns:
    Number of images that could not be read, which are named on stderr.
  """
  out.mkdir(parents=True, exist_ok=True)
  unreadable = 0
  for path, stem in zip(paths, _stems(paths), strict=True):
    try:
      prediction = predictor(path)
    except (OSError, decode.DecodeError) as error:
      print(f'predict: {error}', file=sys.stderr)
      unreadable += 1
      continue
    for end, picture in prediction.files().items():
      picture.save(out / f'{stem}{end}')
    print(f'{path}: {prediction}')
  if unreadable:
    print(
      f'predict: {unreadable} of {len(paths)} images could not be read.',
      file=sys.stderr,
    )
  return unreadable


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status, see the head of this file."""
  logging.basicConfig(format='predict: %(message)s')
  parser = argparse.ArgumentParser(
    prog='acmix-jax predict',
    usage='%(prog)s [CONFIG] WORKDIR IMAGE [IMAGE ...] --out=DIR',
    description='Draws what a trained model says of images. Fields of the '
    'config follow as --config.FIELD=VALUE.',
    allow_abbrev=False,
  )
  parser.add_argument('paths', nargs='+', help=argparse.SUPPRESS)
  parser.add_argument(
    '--out', type=pathlib.Path, required=True, help='folder of the pictures'
  )
  args, overrides = parser.parse_known_args(argv)
  config, paths = None, args.paths
  try:
    if config_file.is_config(paths[0]):
      config, *paths = config_file.load(paths[0], overrides), *paths[1:]
    elif overrides:
      raise ValueError(
        f'{" ".join(overrides)}: fields can be set of a CONFIG alone.'
      )
    workdir, *images = paths
    if not images:
      raise ValueError('give a workdir, and behind it one image or more.')
    predictor = Predictor(workdir, config)
    unreadable = predict(predictor, [pathlib.Path(x) for x in images], args.out)
  except (OSError, ValueError) as error:
    print(f'predict: {error}', file=sys.stderr)
    return 2
  return 1 if unreadable else 0


if __name__ == '__main__':
  sys.exit(main())
