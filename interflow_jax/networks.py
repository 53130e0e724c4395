"""Networks of other authors, by the names of the functions that make them."""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from interflow_jax.switch import switch_arguments
from interflow_jax.taps import Layer, Network, layers

# The project's own networks, which a checkout has beside the library.
_OWN = ("experiments.tables.backbones:ResNet", "experiments.tables.backbones:ViT")


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
    return _make(name, _function(name), options)


def recorded_network(
    record: Mapping[str, Any], given: str | Network | None = None, trust_code: bool = False
) -> Network | None:
    """The network of a recorded run; nothing is imported or called because a record names it.

    Only the project's own networks open without the caller's word, their source unchanged.

    Args:
      record: `backbone`, a name as `load_network` takes it or "vgg", `backbone_options` and
        `backbone_sha256`, of the source.
      given: what the caller knows to be that network: the name, the function or class, or a network
        that it made. The options are the record's.
      trust_code: whether what the record names may be imported and called.

    Returns:
      What `load_network` returns; None for "vgg", the paper's own network.

    Raises:
      ValueError: where the record names a network and neither is given, for another network than
        the recorded one, or one whose source has changed.
    """
    name, options = record.get("backbone", "vgg"), record.get("backbone_options")
    if name == "vgg":
        if given not in (None, "vgg"):
            raise ValueError(
                f"backbone is {_shown(given)}, but the run's is the paper's own network: leave it "
                "out"
            )
        return None
    if given is None and not trust_code and not _is_own(name, record.get("backbone_sha256")):
        raise ValueError(
            f"the run's network is {name!r}, with the options {options!r}, but what a file names "
            "is not imported: if you trust it, give that network as backbone, or trust_code=True"
        )
    named = [x for x in _makers(given) if _is_named(x, name)]
    if given is None or given == name:
        function = _function(name)
    elif named:
        function = named[0]
    else:
        raise ValueError(f"backbone is {_shown(given)}, but the run's network is {name!r}")
    origin = _source(name, function)
    if origin["sha256"] != record.get("backbone_sha256"):
        raise ValueError(
            f"{name} is not what the run was trained with: its file {origin['file']} has been "
            "changed"
        )
    return _make(name, function, options)


def _is_own(name: Any, sha256: Any) -> bool:
    """Whether a recorded network is the project's, with the digest of the source that is here."""
    if name not in _OWN:
        return False
    module, root = name.partition(":")[0], Path(__file__).resolve().parents[1]
    # What would be imported is that file: not a package of the same name in the current folder.
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != root:
        return False
    file = root / f"{module.replace('.', '/')}.py"
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def read_options(options: str | None) -> dict[str, Any]:
    """Reads "stage_sizes=(2,2),norm=batch" as keyword arguments; raises ValueError if it cannot.

    Values are Python's numbers, strings, tuples, lists, dicts, True, False and None; a bare word is
    a string.
    """
    try:
        call = ast.parse(f"f({options or ''})", mode="eval").body
        names = [option.arg for option in getattr(call, "keywords", ())]
        if not isinstance(call, ast.Call) or call.args or None in names:
            raise ValueError("each option is key=value")
        if not isinstance(call.func, ast.Name):
            raise ValueError("the brackets do not match")
        if len(set(names)) < len(names):
            raise ValueError("each option stands once")
        return {str(option.arg): _value(option.value) for option in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"the options {options!r} are not as key=value,key=(1,2),key='text' ({error})"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        if node.id in ("true", "false"):
            raise ValueError(f"{node.id} is a word: write {node.id.title()}, or '{node.id}'")
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(
            f"{ast.unparse(node)} is no number, string, tuple, list or dict"
        ) from error


def source(name: str) -> dict[str, str]:
    """Where the function of `load_network` comes from: `module`, `file` and its `sha256`."""
    return _source(name, _function(name))


def _source(name: str, function: Any) -> dict[str, str]:
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
    return layers(network, images)


def _function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise ValueError(f"the network is {name!r}; give it as package.module:function")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # somebody else's code
        raise ValueError(
            f"cannot import {module_name!r} of {name!r}: {error!r}; mend or install it, or give "
            "another module"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        close = difflib.get_close_matches(function_name, public, n=3, cutoff=0.0)
        raise ValueError(
            f"{module_name} has no function {function_name!r}; the closest are {', '.join(close)}"
        )
    return function


def _make(name: str, function: Callable[..., Any], options: str | None) -> Network:
    keywords = read_options(options)
    if isinstance(function, nn.Module):
        if keywords:
            raise ValueError(f"{name} is a network, not a function: it takes no {options!r}")
        return function
    # An NNX class has the signature of its metaclass's call, which tells nothing.
    called = function.__init__ if inspect.isclass(function) else function
    try:
        signature = inspect.signature(called)
        if makes_nnx := "rngs" in signature.parameters:
            signature.bind_partial(**keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not take {options!r}: {error}") from error
    if makes_nnx:
        return partial(function, **keywords)
    try:
        network = function(**keywords)
    except (Exception, SystemExit) as error:  # somebody else's code
        given = f"the options {options!r}" if options else "no options"
        raise ValueError(
            f"{name} cannot be called with {given}: {error!r}; give it what it takes by options"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{name} returns a {type(network).__name__}; it must return a flax.linen.Module, or "
            "take rngs and return a flax.nnx.Module"
        )
    return network


def _makers(given: Any) -> tuple[Any, ...]:
    """What may have made a network, or is the function itself."""
    if isinstance(given, partial):
        return given, given.func
    is_function = inspect.isclass(given) or inspect.isroutine(given)
    return (given,) if is_function or isinstance(given, str) else (given, type(given))


def _shown(given: Any) -> str:
    maker = _makers(given)[-1]
    own = getattr(maker, "__module__", "a"), getattr(maker, "__qualname__", type(maker).__name__)
    return repr(given) if isinstance(given, str) else ":".join(own)


def _is_named(candidate: Any, name: Any) -> bool:
    """Whether a name stands for an object, in modules that are imported already."""
    module, _, function = str(name).partition(":")
    own = getattr(candidate, "__module__", None), getattr(candidate, "__qualname__", None)
    loaded = getattr(sys.modules.get(module), "__dict__", {})
    return own == (module, function) or (
        candidate is not None and loaded.get(function) is candidate
    )
