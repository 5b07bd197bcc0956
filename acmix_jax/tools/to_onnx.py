"""Programs of jax as ONNX, by jax2onnx.

The converter is given the operations of `jax.lax` alone, one form of each: it
would replace the layers of Flax by its own, which cannot be mapped over images,
and knows no branches by platform. Padding is written as a concatenation, as its
own fails where the number of images is free, and nothing empty is made, as its
empty arrays have a row.
"""

import logging
import pathlib
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

# Programs within a program, which are written out.
_INNER = {
  'jit': 'jaxpr',
  'pjit': 'jaxpr',
  'closed_call': 'call_jaxpr',
  'custom_jvp_call': 'call_jaxpr',
}
# The branch that is taken where there is one for each platform.
_PLATFORM = 'cpu'


def convert(
  function: Callable[..., Any],
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  tolerance: float,
) -> bytes:
  """Converts a function and compares what onnxruntime computes with it.

  Args:
    function: Function of arrays to an array, then called 'logits', or to a dict
      of arrays.
    inputs: Shapes of the arrays by name; a first axis may be symbolic.
    tolerance: Greatest error, as part of the greatest output.

  Returns:
    The serialised model.

  Raises:
    ModuleNotFoundError: jax2onnx or onnxruntime is not installed.
    ValueError: jax2onnx does not know an operation, or the outputs differ.
  """
  try:
    import jax2onnx
    import onnxruntime
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"ONNX needs {error.name}: pip install 'acmix-jax[onnx]'."
    ) from error
  program, shapes = jax.make_jaxpr(function, return_shape=True)(
    *inputs.values()
  )
  names = list(shapes) if isinstance(shapes, dict) else ['logits']
  # What it says of single values is of no use to a user.
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  try:
    model = jax2onnx.to_onnx(
      lambda *arrays: tuple(_evaluate(program, arrays)),
      list(inputs.values()),
      input_names=list(inputs),
      output_names=names,
    ).SerializeToString()
  except Exception as error:
    message, *_ = str(error).splitlines() or [repr(error)]
    raise ValueError(
      f'jax2onnx cannot convert this network{_operation(error)}: {message}'
    ) from error
  arrays = _examples(inputs)
  onnxruntime.set_default_logger_severity(4)  # Errors are told below.
  try:
    found = onnxruntime.InferenceSession(model).run(names, arrays)
  except Exception as error:
    raise ValueError(
      f'onnxruntime cannot compute what jax2onnx converted: {error}'
    ) from error
  wanted = jax.jit(function)(*arrays.values())
  for name, x, y in zip(names, found, jax.tree.leaves(wanted), strict=True):
    error = np.abs(np.float64(x) - np.float64(y)).max()
    if not error <= tolerance * np.abs(np.float64(y)).max():
      raise ValueError(
        f'onnxruntime computes other {name} than jax: they differ by {error}.'
      )
  return model


def _operation(error):
  """Says which operation it is about, where an operation's converter failed."""
  names = [
    path.stem
    for frame in traceback.extract_tb(error.__traceback__)
    if 'plugins' in (path := pathlib.Path(frame.filename)).parts
  ]
  return f', at the operation {names[0]}' if names else ''


def _examples(inputs):
  """Two images; sizes are those of the whole canvas."""
  rng = np.random.default_rng(0)
  arrays = {}
  for name, x in inputs.items():
    shape = (2, *x.shape[1:])
    if np.issubdtype(x.dtype, np.integer):
      size = inputs['images'].shape[1:3]
      arrays[name] = np.broadcast_to(np.asarray(size, x.dtype), shape)
    else:
      arrays[name] = rng.standard_normal(shape, x.dtype)
  return arrays


def _evaluate(program: core.ClosedJaxpr, arrays):
  """The outputs of a program, by operations without programs within."""
  jaxpr = program.jaxpr
  values = dict(zip(jaxpr.constvars, program.consts, strict=True))
  values |= dict(zip(jaxpr.invars, arrays, strict=True))

  def read(variable):
    literal = isinstance(variable, core.Literal)
    return variable.val if literal else values[variable]

  for equation in jaxpr.eqns:
    found = _apply(equation, [read(x) for x in equation.invars])
    values |= dict(zip(equation.outvars, found, strict=True))
  return [read(x) for x in jaxpr.outvars]


def _apply(equation, inputs):
  """The outputs of one operation, None for what nothing needs."""
  primitive, params = equation.primitive, equation.params
  outputs = equation.outvars
  if primitive.name == 'platform_index' or all(
    0 in x.aval.shape for x in outputs
  ):
    return [None] * len(outputs)
  if platforms := params.get('branches_platforms'):
    branch = next(
      branch
      for branch, names in zip(params['branches'], platforms, strict=True)
      if names is None or _PLATFORM in names
    )
    return _evaluate(branch, inputs[1:])
  if primitive.name in _INNER:
    return _evaluate(params[_INNER[primitive.name]], inputs)
  if primitive.name == 'pad':
    return [_pad(*inputs, **params)]
  if primitive.name == 'concatenate':
    return [_concatenate(inputs, **params)]
  found = primitive.bind(*inputs, **params)
  return found if primitive.multiple_results else [found]


def _pad(x, value, padding_config):
  """`lax.pad` by concatenations, where it only adds."""
  if any(min(low, high) < 0 or inner for low, high, inner in padding_config):
    return lax.pad(x, value, padding_config)
  for axis, (low, high, _) in enumerate(padding_config):
    before, after = (
      lax.broadcast(value, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
      if size
      else None
      for size in (low, high)
    )
    x = _concatenate((before, x, after), axis)
  return x


def _concatenate(arrays, dimension):
  """`lax.concatenate` of those that are not empty."""
  arrays = [x for x in arrays if x is not None]
  return lax.concatenate(arrays, dimension) if len(arrays) > 1 else arrays[0]
