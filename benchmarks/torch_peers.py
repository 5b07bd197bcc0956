"""Work in PyTorch, the official code above all, served to `harness.Peer`.

Runs in an interpreter with PyTorch and without the project's packages. Its
one argument is a JSON object that describes the work; once that is done for the
first time, a line of JSON says so. Then each line with a number makes it do the
work that many times and answer the seconds.
"""

import functools
import importlib.util
import json
import os
import pathlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks import torch_segmenters

Options = types.SimpleNamespace

_RESNETS = {26: [1, 2, 4, 1], 38: [2, 3, 5, 2], 50: [3, 4, 6, 3]}
_SANS = {10: [2, 1, 2, 4, 1], 15: [3, 2, 3, 5, 2], 19: [3, 3, 4, 6, 3]}
_SWINS = {'tiny': [2, 2, 6, 2], 'small': [2, 2, 18, 2]}


class DropPath(nn.Module):
  """Drops the branch of a whole image, as timm's layer of that name."""

  def __init__(self, probability: float = 0.0):
    super().__init__()
    self.keep = 1 - probability

  def forward(self, x):
    """Scales what is kept of x [b, ...]."""
    if not self.training:
      return x
    shape = (len(x), *[1] * (x.ndim - 1))
    return x * (torch.rand(shape, device=x.device) < self.keep) / self.keep


class UnfoldAggregation(nn.Module):
  """SAN's aggregation by unfolding; the official one is a CUDA kernel."""

  def __init__(self, kernel_size, stride, padding, dilation, pad_mode):
    super().__init__()
    del pad_mode  # Reflection in all of SAN.
    self.pad = nn.ReflectionPad2d(padding)
    self.unfold = nn.Unfold(kernel_size, dilation=dilation, stride=stride)

  def forward(self, x, weight):
    """Sums the windows of x [b, c, h, w] by weight [b, c / s, k * k, h * w]."""
    b, planes, taps, pixels = weight.shape
    windows = self.unfold(self.pad(x)).view(b, -1, planes, taps, pixels)
    return (windows * weight[:, None]).sum(3).view(x.shape)


def _stand_in(name: str, **members: Any) -> None:
  """Makes `from name import member` work without the package."""
  parts = name.split('.')
  for i in range(1, len(parts) + 1):
    path = '.'.join(parts[:i])
    sys.modules.setdefault(path, types.ModuleType(path))
  vars(sys.modules[name]).update(members)


def _load(root: str, path: str, package: str = '') -> types.ModuleType:
  """Imports a file of the official code, with its folder on the path.

  Args:
    root: folder of the code.
    path: file below it.
    package: dotted name of the package of which the file takes itself for a
      part; its parents may be stand-ins.
  """
  file = pathlib.Path(root, path)
  if not root or not file.is_file():
    raise FileNotFoundError(f'no {path} in the official code {root!r}')
  sys.path.insert(0, str(file.parent))
  name = f'{package}.{file.stem}' if package else file.stem
  spec = importlib.util.spec_from_file_location(name, file)
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _load_with_timm(
  root: str, path: str, package: str = ''
) -> types.ModuleType:
  _stand_in(
    'timm.models.layers',
    DropPath=DropPath,
    to_2tuple=lambda x: (x, x),
    trunc_normal_=nn.init.trunc_normal_,
  )
  _stand_in('timm.models.registry', register_model=lambda function: function)
  _stand_in('timm.models.vision_transformer', _cfg=dict)
  return _load(root, path, package)


def _resnet_acmix(o: Options, layers: list[int]) -> nn.Module:
  _stand_in('torchvision.models.utils', load_state_dict_from_url=None)
  module = _load(o.acmix, 'ResNet/ResNet_ImageNet.py')
  return module.ACmix_ResNet(layers, num_classes=o.num_classes)


def _san(o: Options, layers: list[int]) -> nn.Module:
  _stand_in(
    'lib.sa.modules',
    Aggregation=UnfoldAggregation,
    Subtraction=None,
    Subtraction2=None,
  )
  module = _load(o.san, 'model/san.py')
  patchwise = 1
  return module.san(patchwise, layers, [3, 7, 7, 7, 7], o.num_classes)


def _pvt(o: Options, name: str) -> nn.Module:
  module = _load_with_timm(o.pvt, 'classification/pvt.py')
  return getattr(module, name)(
    img_size=o.image_size[0],
    num_classes=o.num_classes,
    drop_path_rate=o.drop_path,
  )


def _swin(o: Options, layers: list[int], suffix: str) -> nn.Module:
  path = f'Swin-Transformer/models/swin_transformer{suffix}.py'
  module = _load_with_timm(o.acmix, path)
  return getattr(module, f'SwinTransformer{suffix}')(
    img_size=o.image_size[0],
    num_classes=o.num_classes,
    depths=layers,
    drop_path_rate=o.drop_path,
  )


def _register(module: Any = None) -> Callable:
  return lambda member: member


def _load_segmentation(
  root: str, path: str, package: str = ''
) -> types.ModuleType:
  """Imports a backbone that is written for mmsegmentation."""
  builder = types.SimpleNamespace(register_module=_register)
  _stand_in('mmcv_custom', load_checkpoint=None)
  _stand_in('mmcv.runner', load_checkpoint=None)
  _stand_in('mmseg.utils', get_root_logger=None)
  _stand_in('mmseg.models.builder', BACKBONES=builder)
  return _load_with_timm(root, path, package)


def _pvt_maps(o: Options, name: str) -> nn.Module:
  module = _load_segmentation(o.pvt, 'segmentation/pvt.py')
  # The released constructors fix the size and the drop path of 0.1.
  return getattr(module, name)()


def _swin_maps(o: Options, layers: list[int]) -> nn.Module:
  module = _load_segmentation(
    o.swin_segmentation,
    'mmseg/models/backbones/swin_transformer.py',
    'mmseg.models.backbones',
  )
  return module.SwinTransformer(depths=layers, drop_path_rate=o.drop_path)


# Backbones that give maps, with the channels of these.
_BACKBONES = {
  **{
    name: (functools.partial(_pvt_maps, name=name), [64, 128, 320, 512])
    for name in ('pvt_tiny', 'pvt_small')
  },
  **{
    f'swin_{size}': (
      functools.partial(_swin_maps, layers=layers),
      [96, 192, 384, 768],
    )
    for size, layers in _SWINS.items()
  },
}


def _segmenter(o: Options) -> nn.Module:
  if o.backbone not in _BACKBONES:
    raise KeyError(f'no official code of {o.backbone} for segmentation')
  make, channels = _BACKBONES[o.backbone]
  head = torch_segmenters.HEADS[o.model](channels, o.num_classes)
  return torch_segmenters.Segmenter(make(o), head)


# By our name of the model.
_MODELS = {
  **{
    f'resnet{depth}_acmix': functools.partial(_resnet_acmix, layers=layers)
    for depth, layers in _RESNETS.items()
  },
  **{
    f'san{depth}': functools.partial(_san, layers=layers)
    for depth, layers in _SANS.items()
  },
  **{
    name: functools.partial(_pvt, name=name)
    for name in ('pvt_tiny', 'pvt_small')
  },
  **{
    f'swin_{size}{suffix}': functools.partial(
      _swin, layers=layers, suffix=suffix
    )
    for size, layers in _SWINS.items()
    for suffix in ('', '_acmix')
  },
}


def _on_batch(o: Options) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
  """A model, and its loss of one batch of noise."""
  if o.objects:
    return _torchvision(o, 'on_batch')
  height, width = o.image_size
  if o.model in torch_segmenters.HEADS:
    net, objective = _segmenter(o), torch_segmenters.objective
    label_shape = (o.batch, height, width)
  elif o.model in _MODELS:
    net = _MODELS[o.model](o)
    objective = nn.CrossEntropyLoss(label_smoothing=o.label_smoothing)
    label_shape = (o.batch,)
  else:
    raise KeyError(f'no official code of {o.model}')
  net = net.to(o.device).train()
  images = torch.randn(o.batch, 3, height, width, device=o.device)
  labels = torch.randint(o.num_classes, label_shape, device=o.device)
  return net, lambda: objective(net(images), labels)


def _train_step(o: Options) -> Callable[[], None]:
  """One update of an official model on one batch."""
  net, loss_of_batch = _on_batch(o)
  make = {'sgd': torch.optim.SGD, 'adamw': torch.optim.AdamW}[o.optimizer]
  trained = [x for x in net.parameters() if x.requires_grad]
  optimizer = make(trained, **o.optimizer_options)

  def step():
    optimizer.zero_grad()
    with _autocast(o):
      loss = loss_of_batch()
    loss.backward()
    if o.clip_norm:
      nn.utils.clip_grad_norm_(trained, o.clip_norm)
    optimizer.step()

  return step


def _layer(o: Options) -> Callable[[], None]:
  """The official ACmix layer, forward and backward."""
  module = _load(o.acmix, 'ResNet/test_bottleneck.py')
  net = module.ACmix(o.features, o.features, head=o.num_heads).to(o.device)
  if o.compile:
    net = torch.compile(net)
  shape = (o.batch, o.features, o.size, o.size)
  x, to_y = (_random(o, *shape) for _ in range(2))
  x.requires_grad_()

  def step():
    net.zero_grad()
    x.grad = None
    with _autocast(o):
      y = net(x)
    y.backward(to_y.to(y.dtype))

  return step


def _flex_attention(o: Options) -> Callable[[], None]:
  """PyTorch's flex_attention over the same reflected windows."""
  from torch.nn.attention import flex_attention

  if o.device == 'cpu':
    raise NotImplementedError('flex_attention has no gradient on CPU')
  reach = o.kernel_size - 1
  width = o.size + reach

  def in_window(batch, head, query, key):
    del batch, head
    rows = key // width - query // o.size
    columns = key % width - query % o.size
    inside = (rows >= 0) & (rows <= reach)
    return inside & (columns >= 0) & (columns <= reach)

  mask = flex_attention.create_block_mask(
    in_window, None, None, o.size**2, width**2, device=o.device
  )
  attend = torch.compile(flex_attention.flex_attention)
  shape = (o.batch, o.features, o.size, o.size)
  q, k, v, to_y = (_random(o, *shape) for _ in range(4))
  for x in (q, k, v):
    x.requires_grad_()

  def heads(x):
    return x.unflatten(1, (o.num_heads, -1)).flatten(3).swapaxes(2, 3)

  def step():
    edges = [reach // 2] * 4
    keys, values = (functional.pad(x, edges, mode='reflect') for x in (k, v))
    y = attend(heads(q), heads(keys), heads(values), block_mask=mask)
    torch.autograd.grad(y, (q, k, v), heads(to_y))

  return step


def _torchvision(o: Options, work: str) -> Any:
  """Work of `torch_detectors`, which not every interpreter can import."""
  from benchmarks import torch_detectors

  return getattr(torch_detectors, work)(o)


def _autocast(o: Options) -> torch.autocast:
  dtype = getattr(torch, o.dtype)
  return torch.autocast(o.device, dtype, enabled=dtype != torch.float32)


def _random(o: Options, *shape: int) -> torch.Tensor:
  return torch.randn(shape, device=o.device, dtype=getattr(torch, o.dtype))


_WORKS = {
  'flex_attention': _flex_attention,
  'layer': _layer,
  **{
    work: functools.partial(_torchvision, work=work)
    for work in ('nms', 'roi_align', 'roi_align_gradient')
  },
  'train_step': _train_step,
}


def _seconds(step: Callable[[], None], calls: int, device: str) -> float:
  start = time.perf_counter()
  for _ in range(calls):
    step()
  if device == 'cuda':
    torch.cuda.synchronize()
  return time.perf_counter() - start


def main() -> None:
  """Serves until the input ends."""
  # What the official code prints must not mix with the answers.
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

  def answer(**values):
    print(json.dumps(values), file=answers, flush=True)

  options = Options(**json.loads(sys.argv[1]))
  torch.set_num_threads(options.threads)
  try:
    if options.device == 'cuda' and not torch.cuda.is_available():
      raise RuntimeError('this PyTorch sees no GPU')
    step = _WORKS[options.work](options)
    _seconds(step, 1, options.device)
  except Exception as error:  # Whatever it is, the asker shall print it.
    answer(error=f'{type(error).__name__}: {error}')
    return
  answer(torch=torch.__version__)
  for line in sys.stdin:
    answer(seconds=_seconds(step, int(line), options.device))


if __name__ == '__main__':
  main()
