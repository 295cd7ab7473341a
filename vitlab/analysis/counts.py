"""Counts of parameters and multiply-accumulates, without allocating or computing arrays."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from pallas_kernels import target
from pallas_kernels.neighborhood_attention import macs as neighborhood_macs


def count_params(model: nnx.Module) -> int:
    """Counts the trainable parameters of a model, abstract or real."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def count_macs(model: Any, image_size: tuple[int, int] | None = None) -> int:
    """Counts the multiply-accumulates of the forward pass on one image.

    Matrix products and convolutions count, attention included. The count is torch's FlopCounterMode
    / 2, which papers on vision models publish as "GFLOPs".

    Args:
      model: A model, abstract or real.
      image_size: Height and width in pixels; None: the model's.
    """
    height, width = image_size or model.preprocessing.image_size
    images = jax.ShapeDtypeStruct((1, height, width, model.config.in_channels), jnp.float32)
    graphdef, state = nnx.split(model)
    return macs_of(lambda state, x: nnx.merge(graphdef, state)(x), state, images)


def macs_of(fn: Callable[..., Any], *args: Any) -> int:
    """Counts the multiply-accumulates of a function at these shapes.

    A loop of unknown length counts as one pass. Attention has one count whatever kernel computes
    it: neighborhood attention and sums count what their definition needs, without the masked
    products that an implementation adds.
    """
    with target.assume("any"):  # on an unknown platform no kernel and no platform's special form is traced
        return macs_in(jax.make_jaxpr(fn)(*args).jaxpr)


def macs_in(jaxpr: core.Jaxpr) -> int:
    """Counts the multiply-accumulates of a traced function, as `macs_of` does.

    A backward pass and a kernel count what they compute.
    """
    return sum(_macs(eqn) for eqn in jaxpr.eqns)


def _repeats(eqn: core.JaxprEqn) -> int:
    """Returns how many times an equation runs its inner program."""
    if eqn.primitive.name == "pallas_call":
        return math.prod(eqn.params["grid_mapping"].grid)
    return eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1


def _sub_jaxprs(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in eqn.params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def _macs_by_definition(eqn: core.JaxprEqn) -> int | None:
    """Counts an equation that is a whole neighborhood attention or sum; None for others.

    Their backward passes have the same name, but count as other equations do.
    """
    name, shapes = str(eqn.params.get("name", "")), [_shape(x) for x in eqn.invars]
    if name == "neighborhood_sum" and len(shapes) == 2:
        weights, value = shapes
        return math.prod(weights) * value[-1]
    match = re.fullmatch(r"neighborhood_attention_([\dx]+)", name)
    # The shapes of query, key and value agree; a backward pass has one more such array.
    if match and shapes[0] and [shape[:-2] for shape in shapes].count(shapes[0][:-2]) == 3:
        query, _, value, *_ = shapes
        return neighborhood_macs(query, tuple(map(int, match[1].split("x"))), value[-1])
    return None


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _macs(eqn: core.JaxprEqn) -> int:
    name = eqn.primitive.name
    if eqn.params.get("name") == "expand_bias":  # a lookup, written as a product for speed
        return 0
    if (macs := _macs_by_definition(eqn)) is not None:
        return macs
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        left = _shape(eqn.invars[0])
        return math.prod(_shape(eqn.outvars[0])) * math.prod(left[i] for i in contract)
    if name == "conv_general_dilated":
        spec = eqn.params["dimension_numbers"].rhs_spec  # out, in, rows, columns
        kernel = _shape(eqn.invars[1])
        return math.prod(_shape(eqn.outvars[0])) * math.prod(kernel[i] for i in spec[1:])
    return _repeats(eqn) * sum(map(macs_in, _sub_jaxprs(eqn)))
