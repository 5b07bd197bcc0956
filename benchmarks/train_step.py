r"""One update of a model, against its baseline and the official PyTorch code.

python -m benchmarks.train_step --acmix=DIR --san=DIR --pvt=DIR \
  --swin_segmentation=DIR [--torch_python=FILE] [--dtype=bfloat16] \
  [--models=resnet26_acmix,san10,upernet:swin_tiny]
python -m benchmarks.train_step --models=retinanet:resnet50,mask_rcnn:resnet50 \
  --batch=2 --image_size=320,416

The update is that of the training loop (forward, backward, optimiser, batch
statistics, metrics) with the optimiser of the model's config, on one batch of
noise, without mixing and erasing. The baseline of X_acmix is X. The official
models run under PyTorch's own optimisers with the same settings, under autocast
unless in float32; the heads of segmenters are written from torch.nn, detectors
are torchvision's.
"""

import argparse
import contextlib
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from acmix_jax import cpu_kernels
from acmix_jax.train import build
from acmix_jax.train import mesh as mesh_lib
from benchmarks import detection, harness

_MODELS = 'resnet26_acmix,swin_tiny_acmix,san10,pvt_tiny'
_SEGMENTERS = ('semantic_fpn', 'upernet')
_OBJECTS = 7  # in an image, as in COCO
_HEADER = (
  'model',
  'contestant',
  'ms',
  'official / this',
  'this / baseline',
  'compile s',
  'temporary MiB',
)


def make_config(
  name: str, args: argparse.Namespace
) -> ml_collections.ConfigDict:
  """The model's config on one device and without mixing of images."""
  head, _, backbone = name.rpartition(':')
  height, width = args.image_size[0], args.image_size[-1]
  if head:
    data = 'ade20k' if head in _SEGMENTERS else 'coco'
    module = importlib.import_module(f'configs.{data}_{head}')
    config = module.get_config(backbone)
    if data == 'coco':
      config.data.canvases = ((height, width),)
    else:
      config.data.crop_size = height
  else:
    config = importlib.import_module(f'configs.{name}').get_config()
    config.data.image_size = height
    augment = config.augment
    augment.erasing_probability = augment.mixup_probability = 0.0
    augment.mixup_alpha = augment.cutmix_alpha = 0.0
  config.model.dtype = args.dtype
  config.train.batch_size = args.batch
  config.mesh.data = 1
  return config


class Update:
  """A contestant that trains on one batch.

  Attributes:
    compile_seconds: Time of tracing and compiling the update.
    temporary_bytes: Temporary memory of the compiled update.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    training = build.Training(
      config, mesh_lib.make_mesh(config.mesh), steps_per_epoch=1000
    )
    self._batch = mesh_lib.to_devices(_noise(training.task), training.mesh)
    start = time.perf_counter()
    lowered = training.update.lower(training.state_shapes, self._batch)
    self._update = lowered.compile()
    self.compile_seconds = time.perf_counter() - start
    memory = self._update.memory_analysis()
    self.temporary_bytes = memory.temp_size_in_bytes
    self._state = training.init(jax.random.key(config.seed))

  def __call__(self, calls: int) -> float:
    """See `harness.Contestant`."""
    start = time.perf_counter()
    for _ in range(calls):
      self._state, metrics = self._update(self._state, self._batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - start


def _learning_rate(config):
  rate, reference = (
    config.optim.learning_rate,
    config.optim.reference_batch_size,
  )
  return rate * config.train.batch_size / reference if reference else rate


def _noise(task):
  """A training batch: random pixels and classes, no example left out."""
  rng = np.random.default_rng(0)
  (shapes,) = task.batch_shapes('train')

  def fill(key, shape):
    if key in ('mask', 'masks'):
      return np.full(shape.shape, -1).astype(shape.dtype)
    if key == 'size':
      return np.full(shape.shape, shapes['image'].shape[1:3], shape.dtype)
    end = 256 if key == 'image' else task.config.model.num_classes
    return rng.integers(0, end, shape.shape).astype(shape.dtype)

  batch = {key: fill(key, shape) for key, shape in shapes.items()}
  if 'boxes' in batch:
    objects = _objects(task.config)
    batch['boxes'][:, :_OBJECTS] = objects
    batch['valid'] = np.zeros(shapes['valid'].shape, bool)
    batch['valid'][:, :_OBJECTS] = True
    # Masks are whole: an object fills its box.
    if 'mask_regions' in batch:
      batch['mask_regions'][:, :_OBJECTS] = objects
  return batch


def _objects(config):
  """Boxes of the objects of a batch of a detector, [images, objects, 4]."""
  rows, (canvas,) = config.train.batch_size, config.data.canvases
  boxes = detection.make_boxes(rows * _OBJECTS, *canvas)
  return boxes.reshape(rows, _OBJECTS, 4)


def measure(
  name: str, args: argparse.Namespace, notes: list[str]
) -> Iterator[dict[str, Any]]:
  """Yields a row of the table for each contestant.

  Args:
    name: name of the model.
    args: the parsed options.
    notes: list to which contestants that cannot run are added.
  """
  harness.announce(name)
  baseline = name.removesuffix('_acmix')
  ours = {
    f'ours, {n}': Update(make_config(n, args))
    for n in dict.fromkeys([name, baseline])
  }
  request = _request(make_config(name, args), args)
  with contextlib.ExitStack() as stack:
    peers = harness.start_peers(
      stack, {f'official, {name}': request}, args.torch_python, notes
    )
    seconds = harness.take_turns(ours | peers, args.rounds, args.turn_seconds)
  if peers and baseline.startswith('san'):
    notes.append(
      f"official, {name}: its aggregation, a CUDA kernel, is done by PyTorch's "
      'unfold.'
    )
  own = seconds[f'ours, {name}']
  ratios = {
    'official / this': harness.ratio(seconds.get(f'official, {name}'), own),
    'this / baseline': None,
  }
  if baseline != name:
    ratios['this / baseline'] = harness.ratio(own, seconds[f'ours, {baseline}'])
  for contestant, samples in seconds.items():
    update = ours.get(contestant)
    yield {
      'model': name,
      'contestant': contestant,
      'ms': harness.median_ms(samples),
      **(ratios if samples is own else dict.fromkeys(ratios)),
      'compile s': update and update.compile_seconds,
      'temporary MiB': update and update.temporary_bytes / harness.MIB,
      'seconds': samples,
    }


def _request(config, args):
  """The same update, as `torch_peers` takes it."""
  model, settings = config.model, config.optim
  options = {
    'lr': _learning_rate(config),
    'weight_decay': settings.weight_decay,
  }
  if settings.name == 'sgd':
    options['momentum'] = settings.momentum
  else:
    options |= {'betas': settings.betas, 'eps': settings.epsilon}
  return {
    'work': 'train_step',
    'model': model.name,
    'backbone': model.get('backbone', ''),
    'acmix': args.acmix,
    'san': args.san,
    'pvt': args.pvt,
    'swin_segmentation': args.swin_segmentation,
    'batch': config.train.batch_size,
    'image_size': [args.image_size[0], args.image_size[-1]],
    'objects': _objects(config).tolist() if config.task == 'detection' else [],
    'num_classes': model.num_classes,
    'dtype': model.dtype,
    'drop_path': model.drop_path if 'drop_path' in model else 0.0,
    'label_smoothing': config.get('loss', {}).get('label_smoothing', 0.0),
    'optimizer': settings.name,
    'optimizer_options': options,
    'clip_norm': settings.clip_norm,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table and writes the record."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.train_step', description=__doc__.splitlines()[0]
  )
  harness.add_arguments(parser)
  harness.add_peer_arguments(
    parser,
    acmix='LeapLabTHU/ACmix',
    san='hszhao/SAN',
    pvt='whai362/PVT',
    swin_segmentation='SwinTransformer/Swin-Transformer-Semantic-Segmentation',
  )
  parser.add_argument(
    '--models',
    type=harness.list_of(str),
    default=_MODELS,
    help='names of models, or HEAD:BACKBONE (default: %(default)s)',
  )
  parser.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='of the computation (default: %(default)s)',
  )
  parser.add_argument(
    '--batch', type=int, default=4, help='images (default: %(default)s)'
  )
  parser.add_argument(
    '--image_size',
    type=harness.list_of(int),
    default='224',
    help='px; of detectors height and width (default: %(default)s)',
  )
  args = parser.parse_args(argv)
  rows, notes = [], []
  if jax.default_backend() == 'cpu' and not cpu_kernels.enable():
    notes.append(f'No kernels for CPU: {cpu_kernels.why_not()}')
  for name in args.models:
    rows += measure(name, args, notes)
  harness.report(args, _HEADER, rows, notes)
  return 0


if __name__ == '__main__':
  # Else a second run would show how long reading its program takes.
  jax.config.update('jax_enable_compilation_cache', False)
  sys.exit(main())
