r"""Writes a trained network as one file, for programs without this package.

    acmix-jax export RUN OUT.stablehlo [--image_size=HxW]
    acmix-jax export RUN OUT.onnx
    acmix-jax export RUN OUT.safetensors
    acmix-jax export MODEL OUT --weights=FILE [--FIELD=VALUE]

RUN is the folder of a training or one of its checkpoints
(WORKDIR/checkpoints/STEP); weights are chosen as in evaluations. MODEL is one
of acmix_jax.list_models(), or HEAD:BACKBONE; FILE is what
acmix_jax.load_weights takes, and fields are those of the model that differ from
its defaults.

The end of OUT says what is written:

- .stablehlo: the network as a program of jax.export for CPU, TPU and GPU, which
  jax alone loads.
- .onnx: the network for onnxruntime and others. Needs jax2onnx: pip install
  'acmix-jax[onnx]'. It is run beside ours before it is written, and is an error
  if the outputs differ.
- .safetensors: the weights alone, for acmix_jax.load_weights.

A network takes any number of normalised images, float32 [b, h, w, 3], of one
size, and gives what model.apply gives: logits, or the fields of `Detections`.
OUT.json beside it, of the same name, says the size, the mean and standard
deviation of RGB in [0, 1] by which images were normalised, and the names of the
classes.
"""

import argparse
import dataclasses
import functools
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from acmix_jax import models, weights
from acmix_jax.models import detection
from acmix_jax.tools import convert, to_onnx, trained

# Those that a .stablehlo file runs on.
PLATFORMS = ('cpu', 'tpu', 'cuda')
# Side of the images of a classifier that comes without a training.
_IMAGE_SIZE = 224
# Greatest error of an ONNX file, as part of the greatest output.
_TOLERANCE = 1e-5


class Network(NamedTuple):
  """A model with its weights.

  Attributes:
    model: Model.
    variables: Variables of the model.
    image_size: Height and width of the images; their number is free.
    description: What JSON can hold and a user must know.
  """

  model: nn.Module
  variables: Mapping[str, Any]
  image_size: tuple[int, int]
  description: Mapping[str, Any]

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What the network takes, by name; 'b' is the number of images."""
    [b] = jax.export.symbolic_shape('b')
    shape = (b, *self.image_size, 3)
    inputs = {'images': jax.ShapeDtypeStruct(shape, jnp.float32)}
    if self.finds_objects:
      inputs['sizes'] = jax.ShapeDtypeStruct((b, 2), jnp.int32)
    return inputs

  def using(self, attention: str, convolution: str) -> Callable[..., Any]:
    """A function (variables, *inputs) -> outputs by these implementations."""
    fields = {
      'attention_implementation': attention,
      'convolution_implementation': convolution,
      'remat': 'none',
    }
    backbone = self.model.backbone
    known = {field.name for field in dataclasses.fields(backbone)}
    fields = {name: x for name, x in fields.items() if name in known}
    model = self.model.clone(backbone=backbone.clone(**fields))

    def apply(variables, *inputs):
      return model.apply(variables, *inputs, train=False)

    return _by_image(apply) if self.finds_objects else apply

  @property
  def finds_objects(self) -> bool:
    """Whether the model is a detector."""
    return isinstance(self.model, detection.Detector)


def _by_image(apply):
  """A detector's function that sees one image at a time.

  Operators on regions need to know how many there are.
  """

  def of_one(variables, *inputs):
    found = apply(variables, *(x[None] for x in inputs))
    return {k: x[0] for k, x in found._asdict().items() if x is not None}

  def of_all(variables, *inputs):
    return jax.vmap(functools.partial(of_one, variables))(*inputs)

  return of_all


def from_run(
  run: str | os.PathLike,
  image_size: tuple[int, int] | None = None,
  dtype: str = 'float32',
) -> Network:
  """The network that a training left.

  Args:
    run: workdir or checkpoint, see `weights.find`.
    image_size: height and width; None: those of the training.
    dtype: computation dtype.

  Raises:
    DamagedError: the checkpoint is damaged.
    ValueError: there is no such training.
  """
  found = trained.load(run, dtype=dtype)
  config = found.task.config
  if image_size is None:
    first, *_ = found.task.batch_shapes('train')
    image_size = first['image'].shape[1:3]
  return Network(
    found.task.model,
    found.variables,
    image_size,
    {
      'model': ':'.join(
        x for x in (config.model.name, config.model.get('backbone')) if x
      ),
      'image_size': image_size,
      'mean': config.data.mean,
      'std': config.data.std,
      'class_names': found.class_names,
    },
  )


def from_weights(
  name: str,
  path: str | os.PathLike,
  image_size: tuple[int, int] | None = None,
  **fields: Any,
) -> Network:
  """A model with weights from a file.

  Args:
    name: a classifier, or HEAD:BACKBONE.
    path: weights, see `weights.load_weights`.
    image_size: height and width; None: 224 for a classifier.
    **fields: the fields the model is made with, if not the defaults.

  Raises:
    KeyError: no model has that name.
    ValueError: a field is unknown, the size is missing, or the weights do not
      fit.
  """
  named = models.split_name(name)
  model = models.create_model(**named, **fields)
  if image_size is None:
    if 'backbone' in named:
      raise ValueError(f'{name}: give --image_size=HxW, such as 512x512.')
    image_size = (_IMAGE_SIZE, _IMAGE_SIZE)
  images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
  variables = weights.assign(
    jax.eval_shape(model.init, jax.random.key(0), images),
    weights.load_weights(path),
  )
  description = {'model': name, 'image_size': image_size}
  names = weights.load_description(path).get('class_names')
  if names:
    description['class_names'] = names
  return Network(model, variables, image_size, description)


def stablehlo(network: Network) -> bytes:
  """The network as a program that `jax.export.deserialize` loads.

  It is made of operations of XLA alone: the kernels of this package are for
  one machine (those for CPU), or for a number of images that is known.
  """
  # The convolution path has no one form that is fast everywhere.
  by_platform = {
    platform: network.using('tiles', convolution)
    for platform, convolution in (('cpu', 'channels'), ('default', 'grouped'))
  }

  def run(*inputs):
    return lax.platform_dependent(network.variables, *inputs, **by_platform)

  exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(
    *network.inputs.values()
  )
  return exported.serialize()


def onnx(network: Network) -> bytes:
  """The network as an ONNX model, which onnxruntime computes as we do.

  Raises:
    ModuleNotFoundError: jax2onnx or onnxruntime is not installed.
    ValueError: the network has an operation that jax2onnx does not know or
      does not convert to the same numbers.
  """
  apply = network.using('patches', 'grouped')
  return to_onnx.convert(
    functools.partial(apply, network.variables), network.inputs, _TOLERANCE
  )


_PROGRAMS = {'.stablehlo': stablehlo, '.onnx': onnx}
_WEIGHTS = '.safetensors'


def write(network: Network, path: str | os.PathLike) -> None:
  """Writes a network in the format that the end of the file's name says.

  A program gets its description beside it, with the end .json; weights have it
  within.

  Raises:
    ModuleNotFoundError: the format needs a package that is not installed.
    ValueError: no format has that end, or cannot hold the network.
  """
  path = _checked(path)
  if path.suffix == _WEIGHTS:
    weights.save_weights(path, network.variables, network.description)
    return
  content = _PROGRAMS[path.suffix](network)
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_bytes(content)
  temporary.replace(path)
  text = json.dumps(network.description, indent=2, ensure_ascii=False)
  path.with_suffix('.json').write_text(f'{text}\n', encoding='utf-8')


def _checked(path):
  """The path, if something can be written there."""
  path = pathlib.Path(path).expanduser()
  if path.suffix not in (*_PROGRAMS, _WEIGHTS):
    ends = ', '.join((*_PROGRAMS, _WEIGHTS))
    raise ValueError(f'{path} must end in one of {ends}.')
  if not path.parent.is_dir():
    raise ValueError(f'{path}: there is no folder {path.parent}.')
  return path


def _size(text: str) -> tuple[int, int]:
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)?', text):
    raise argparse.ArgumentTypeError(
      f'{text!r} is no size in pixels such as 224 or 512x683 (height, width).'
    )
  height, _, width = text.partition('x')
  return int(height), int(width or height)


def _load(args, fields) -> Network:
  if args.weights is not None:
    return from_weights(
      args.network,
      args.weights,
      args.image_size,
      num_classes=args.num_classes,
      dtype=args.dtype,
      **fields,
    )
  if fields or args.num_classes:
    raise ValueError(
      'fields of a model are given with its name and --weights; those of a '
      'training are recorded.'
    )
  name = models.split_name(args.network)['name']
  if name in (*models.list_models(), *models.list_heads()):
    raise ValueError(f'{args.network} is a model: give its --weights=FILE.')
  return from_run(args.network, args.image_size, args.dtype)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 for what cannot be exported."""
  parser = argparse.ArgumentParser(
    prog='acmix-jax export',
    description='Writes a trained network as one file. With --weights, fields '
    'of the model that differ from its defaults follow as --FIELD=VALUE.',
    allow_abbrev=False,
  )
  parser.add_argument('network', metavar='RUN|MODEL|HEAD:BACKBONE')
  parser.add_argument('out', metavar='OUT.stablehlo|.onnx|.safetensors')
  parser.add_argument('--weights', metavar='FILE', help='of a MODEL')
  parser.add_argument(
    '--image_size', type=_size, help='HxW; default: as trained, or 224'
  )
  parser.add_argument('--num_classes', type=int, help='of a MODEL')
  parser.add_argument(
    '--dtype', default='float32', help='computation dtype; default: float32'
  )
  args, rest = parser.parse_known_args(argv)
  try:
    _checked(args.out)
    network = _load(args, dict(map(convert.parse_field, rest)))
    write(network, args.out)
  except (OSError, ImportError, ValueError) as error:
    print(f'export: {error}', file=sys.stderr)
    return 2
  height, width = network.image_size
  what = network.description['model']
  print(f'{args.out}: {what}, images [b, {height}, {width}, 3]')
  return 0


if __name__ == '__main__':
  logging.basicConfig(format='export: %(message)s')
  sys.exit(main())
