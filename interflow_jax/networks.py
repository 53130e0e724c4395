"""Networks of other authors, by the names of the functions that make them."""

import ast
import difflib
import hashlib
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from interflow_jax.nnx_taps import nnx_layers
from interflow_jax.switch import switch_arguments
from interflow_jax.taps import Layer, layers

Network = nn.Module | Callable[..., Any]
"""A Linen module, or a function that makes an NNX module, called as `make(rngs=nnx.Rngs(...))`."""


def load_network(name: str, options: str | None = None) -> Network:
    """The network made by a function of an installed package, or of a file on the path.

    Args:
      name: "package.module:function", of a function or class that returns a Linen or NNX module.
      options: its keyword arguments as in a call, "stage_sizes=(2,2),n_classes=10"; bare words are
        strings.

    Returns:
      The Linen module; or, where the function takes `rngs`, the function with its options bound.

    Raises:
      ValueError: for a module or function that does not exist, options that it does not take, or a
        result that is not a module.
    """
    function = _function(name)
    keywords = read_options(options)
    try:
        # An NNX class has the signature of its metaclass's call, which tells nothing.
        called = function.__init__ if inspect.isclass(function) else function
        if makes_nnx := "rngs" in inspect.signature(called).parameters:
            inspect.signature(called).bind_partial(**keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not take {options!r}: {error}") from error
    if makes_nnx:
        return partial(function, **keywords)
    try:
        network = function(**keywords)
    except Exception as error:  # somebody else's code
        given = f"the options {options!r}" if options else "no options"
        raise ValueError(f"{name} cannot be called with {given}: {error!r}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{name} returns a {type(network).__name__}; it must return a flax.linen.Module, or "
            "take rngs and return a flax.nnx.Module"
        )
    return network


def read_options(options: str | None) -> dict[str, Any]:
    """Reads "stage_sizes=(2,2),norm=batch" as keyword arguments; raises ValueError if it cannot.

    Values are Python's numbers, strings, tuples, lists, True, False and None; a bare word is a
    string.
    """
    try:
        call = ast.parse(f"f({options or ''})", mode="eval").body
        names = [option.arg for option in getattr(call, "keywords", ())]
        if not isinstance(call, ast.Call) or call.args or None in names:
            raise ValueError("each option is key=value")
        if not isinstance(call.func, ast.Name) or len(set(names)) < len(names):
            raise ValueError("each option stands once")
        return {
            str(option.arg): option.value.id
            if isinstance(option.value, ast.Name)
            else ast.literal_eval(option.value)
            for option in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"the options {options!r} are not as key=value,key=(1,2),key='text' ({error})"
        ) from error


def source(name: str) -> dict[str, str]:
    """Where the function of `load_network` comes from: `module`, `file` and its `sha256`."""
    function = _function(name)
    module = inspect.getmodule(getattr(function, "func", function)) or inspect.getmodule(function)
    try:
        file = Path(inspect.getfile(module))  # type: ignore[arg-type]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, TypeError) as error:
        raise ValueError(f"{name} has no source file that can be read ({error})") from error
    return {"module": module.__name__, "file": str(file), "sha256": digest}  # type: ignore[union-attr]


def network_layers(network: Network, image_shape: tuple[int, ...]) -> list[Layer]:
    """What can be tapped in a network, for a batch of one image, [height, width, channels]."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if isinstance(network, nn.Module):
        return layers(network, images, **switch_arguments(network, False))
    return nnx_layers(network, images)


def _function(name: str) -> Callable[..., Any]:
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise ValueError(f"the network is {name!r}; give it as package.module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # somebody else's code
        raise ValueError(f"cannot import {module_name!r} of {name!r}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        close = difflib.get_close_matches(function_name, public, n=3, cutoff=0.0)
        raise ValueError(
            f"{module_name} has no function {function_name!r}; the closest are {', '.join(close)}"
        )
    return function
