"""Operators with a first gradient of their own, differentiable in every way.

The gradient that training needs is computed by the operator's own backward
pass. All other derivatives (forward mode, derivatives of gradients) are those
of the operator's general form: plain operations of the same value.

`jax.custom_vjp` has no forward mode, and `jax.custom_derivatives.linear_call`
no derivative by its constants. Here the tangent of the output is a primitive
that is linear in the tangents of the inputs: computed, it is the general form's
tangent; transposed, it is the operator's own backward pass.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir


def define(
  forward: Callable[..., tuple[jax.Array, Any]],
  backward: Callable[..., tuple],
  general: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
  """An operator (problem, *inputs) -> output with these derivatives.

  Args:
    forward: (problem, *inputs) -> (output, saved): the value, and what the
      backward pass is given of it.
    backward: (problem, inputs, saved, gradient of the output) -> gradients of
      the inputs.
    general: (problem, *inputs) -> output, by operations that jax can
      differentiate.

  Returns:
    The operator; its problem is static and hashable, its inputs are pytrees.
  """

  @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
  def evaluate(problem, *inputs):
    return forward(problem, *inputs)

  @evaluate.defjvp
  def _(problem, inputs, tangents):
    out, saved = evaluate(problem, *inputs)
    dout = _tangent(
      functools.partial(general, problem),
      functools.partial(gradients, problem),
      (inputs, saved),
      tangents,
      out,
    )
    # Only the backward pass reads `saved`.
    return (out, saved), (dout, jax.tree.map(jnp.zeros_like, saved))

  @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
  def gradients(problem, inputs, saved, dout):
    return backward(problem, inputs, saved, dout)

  @gradients.defjvp
  def _(problem, arguments, tangents):
    def general_gradients(inputs, dout):
      _, pullback = jax.vjp(functools.partial(general, problem), *inputs)
      return pullback(dout)

    (inputs, _, dout), (dinputs, _, ddout) = arguments, tangents
    _, dgradients = jax.jvp(general_gradients, (inputs, dout), (dinputs, ddout))
    return gradients(problem, *arguments), dgradients

  return lambda problem, *inputs: evaluate(problem, *inputs)[0]


def _tangent(general, gradients, constants, tangents, out):
  """Tangent of the output from those of the inputs, by `_tangent_p`."""
  flat_constants, constants_tree = jax.tree.flatten(constants)
  flat_tangents, tangents_tree = jax.tree.flatten(tangents)
  count = len(flat_constants)

  def push(*flat):
    inputs, _ = jax.tree.unflatten(constants_tree, flat[:count])
    tangents = jax.tree.unflatten(tangents_tree, flat[count:])
    return jax.jvp(general, inputs, tangents)[1]

  def pull(*flat):
    inputs, saved = jax.tree.unflatten(constants_tree, flat[:count])
    return jax.tree.leaves(gradients(inputs, saved, flat[count]))

  return _tangent_p.bind(
    *flat_constants,
    *flat_tangents,
    push=push,
    pull=pull,
    count=count,
    out=jax.typeof(out),
  )


# push: (*constants, *tangents) -> tangent of the output.
# pull: (*constants, gradient of the output) -> gradients, push transposed.
# count: number of the constants.
# out: type of the tangent of the output.
_tangent_p = core.Primitive('operator_tangent')


@_tangent_p.def_impl
def _impl(*args, push, **_):
  return push(*args)


@_tangent_p.def_abstract_eval
def _abstract_eval(*_, out, **__):
  return out


def _jvp(primals, tangents, **parameters):
  tangents = tuple(map(ad.instantiate_zeros, tangents))
  _, dout = jax.jvp(parameters['push'], tuple(primals), tangents)
  return _tangent_p.bind(*primals, **parameters), dout


def _transpose(dout, *args, pull, count, **_):
  gradients = pull(*args[:count], ad.instantiate_zeros(dout))
  # jax takes no gradient of a tangent that is known to be zero.
  wanted = map(ad.is_undefined_primal, args[count:])
  return [None] * count + [
    gradient if is_wanted else None
    for gradient, is_wanted in zip(gradients, wanted, strict=True)
  ]


def _batch(args, axes, *, push, pull, count, out):
  del out
  [size] = {
    x.shape[axis]
    for x, axis in zip(args, axes, strict=True)
    if axis is not None
  }

  def batch(x, axis):
    if axis is None:
      return jnp.broadcast_to(x, (size, *x.shape))
    return jnp.moveaxis(x, axis, 0)

  # A constant may be shared; each tangent has a gradient of its own.
  tangents = list(map(batch, args[count:], axes[count:]))
  axes = tuple(axes[:count])
  args = [*args[:count], *tangents]
  push = jax.vmap(push, (*axes, *[0] * len(tangents)))
  pull = jax.vmap(pull, (*axes, 0))
  [out] = jax.make_jaxpr(push)(*args).out_avals
  out = _tangent_p.bind(*args, push=push, pull=pull, count=count, out=out)
  return out, 0


ad.primitive_jvps[_tangent_p] = _jvp
ad.primitive_transposes[_tangent_p] = _transpose
batching.primitive_batchers[_tangent_p] = _batch
mlir.register_lowering(
  _tangent_p, mlir.lower_fun(_impl, multiple_results=False)
)
