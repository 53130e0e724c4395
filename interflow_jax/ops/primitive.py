"""What the primitives behind the layers have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir


def define(name: str, output: Callable[..., Any], options: Sequence[str]) -> Primitive:
    """A primitive that is compiled wherever it is called, also under `jax.disable_jit`.

    Args:
      output: makes the types of its outputs, one or a list, from those of its inputs.
      options: the names of its keyword arguments.
    """
    primitive = Primitive(name)
    compiled = jax.jit(primitive.bind, static_argnames=options)

    def call(*inputs: Any, **given: Any) -> Any:
        with jax.disable_jit(False):  # else it would call itself
            return compiled(*inputs, **given)

    primitive.def_impl(call)
    primitive.def_abstract_eval(output)
    return primitive


def lower(function: Callable[..., Any], context: Any, *inputs: Any) -> Sequence:
    """Lowers to what a function of arrays computes, on one device's part of them."""
    unsharded = [ShapedArray(aval.shape, aval.dtype) for aval in context.avals_in]  # no mesh here
    several = len(context.avals_out) > 1
    rule = mlir.lower_fun(function, multiple_results=several)
    return rule(context.replace(avals_in=unsharded), *inputs)
