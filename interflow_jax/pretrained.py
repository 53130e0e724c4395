"""Puts parameters that were trained elsewhere into the backbone of a model."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, deserialize

from interflow_jax.nnx_taps import collections_of

_LISTED = 5  # arrays that an error names
# The names of the format; the others are a letter and bits.
_DTYPES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_KINDS = {"F": "float", "I": "int", "U": "uint", "C": "complex"}


def with_backbone(variables: Any, pretrained: Any) -> dict[str, Any]:
    """Puts a network's variables into a model's backbone, and leaves all else as it is.

    Of another `Interflow` over that network, what it has besides goes where names and shapes match:
    layers of branches and fusion weights.

    Args:
      variables: of an `Interflow` over `Taps` or the network itself; arrays, or
        `jax.ShapeDtypeStruct` to check whether they fit.
      pretrained: the network's own variables, {"params": ..., "batch_stats": ...}, or its
        parameters alone where it has no statistics; an NNX network's `nnx.state`; or an Interflow's
        variables, as `TrainedRun.variables`. What lies after the last tap is left out. Collections
        of the network's own that it lacks as a whole stay as they are.

    Returns:
      The model's variables with copies of the pretrained ones, in the model's dtypes.

    Raises:
      ValueError: for a model without a backbone, or arrays of its backbone that `pretrained` lacks
        or has in another shape; the message has their paths and shapes.
    """
    given, flat = _named(collections_of(pretrained)), flatten_dict(dict(variables))
    problems = []
    needed = {"params", "batch_stats", *(name.partition("/")[0] for name in given)}
    for path, name in _origins(flat, given).items():
        if path[0] not in needed:
            continue
        leaf = nn.meta.unbox(flat[path])
        if name not in given:
            problems.append(f"{name} {leaf.shape} is missing")
        elif np.shape(given[name]) != leaf.shape:
            problems.append(f"{name} is {np.shape(given[name])}, the backbone's {leaf.shape}")
        else:  # a copy: training consumes it
            flat[path] = nn.meta.replace_boxed(flat[path], jnp.array(given[name], leaf.dtype))
    if problems:
        more = f", and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        examples = [f"{name} {np.shape(array)}" for name, array in list(given.items())[:3]]
        raise ValueError(
            f"the pretrained parameters do not fit the backbone: {', '.join(problems[:_LISTED])}"
            f"{more}; they have {', '.join(examples)}{_advice(problems, given)}"
        )
    return {collection: {} for collection in variables} | unflatten_dict(flat)


def _advice(problems: list[str], given: dict[str, Any]) -> str:
    if any(name.endswith("/weight") for name in given):
        return ". Names as PyTorch's: rename weight to kernel, and transpose to [..., in, out]"
    if all(problem.startswith("batch_stats/") for problem in problems):
        return ". Statistics belong to them: give both, or those of `init` beside parameters"
    return ""


def taken(variables: Any, pretrained: Any) -> tuple[list[str], list[str]]:
    """The parts of a model's parameters that `with_backbone` takes, and those that stay."""
    flat = flatten_dict(dict(variables))
    origins = _origins(flat, _named(collections_of(pretrained)))
    stay = {path[1] for path in flat if path[0] == "params" and path not in origins}
    return [name for name in variables["params"] if name not in stay], sorted(stay)


def _origins(flat: dict[tuple, Any], given: dict[str, Any]) -> dict[tuple, str]:
    """By the path of a model's variable, the name of the given one that goes there."""
    inside = [path for path in flat if path[1] == "backbone"]
    if not inside:
        parts = dict.fromkeys(path[1] for path in flat if path[0] == "params")
        raise ValueError(
            f"the model's parameters are {', '.join(parts)}; pretrained ones go into those of a "
            "backbone, as an Interflow has"
        )

    def named(path: tuple, below: int) -> str:
        return "/".join(map(str, (path[0], *path[below:])))

    def fits(path: tuple) -> bool:
        name, shape = named(path, 1), nn.meta.unbox(flat[path]).shape
        return name in given and np.shape(given[name]) == shape

    if any(named(path, 1) in given for path in inside):  # a whole model's
        return {path: named(path, 1) for path in flat if path in inside or fits(path)}
    # `Taps` has the network's own names below "network", unless that is a name of the network's.
    tapped = all(path[2] == "network" for path in inside if path[0] == "params")
    below = 3 if tapped and not any(named(path, 2) in given for path in inside) else 2
    return {path: named(path, below) for path in inside}


def _named(pretrained: Any) -> dict[str, Any]:
    """Arrays by names such as "params/conv1/kernel"."""
    tree: Any = serialization.to_state_dict(nn.meta.unbox(pretrained))
    return flatten_dict(tree if "params" in tree else {"params": tree}, sep="/")


def read_pretrained(file: str | Path) -> dict[str, Any]:
    """Reads a network's variables: safetensors, or Flax's msgpack, told apart by their content.

    Names in a safetensors file are paths such as "params/conv1/kernel" or "params.conv1.kernel";
    without a collection in front they are parameters.

    Returns:
      {"params": ..., "batch_stats": ...} as nested dicts of numpy arrays.

    Raises:
      ValueError: for a file that is missing or damaged, is neither, or holds no arrays by name.
    """
    try:
        content = Path(file).expanduser().read_bytes()
        tree = _read(content)
    except OSError as error:
        raise ValueError(f"the pretrained parameters {file} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"{file} {error}; pretrained parameters are arrays by name, in safetensors or Flax's "
            "msgpack"
        ) from error
    return tree if "params" in tree else {"params": tree}


def _read(content: bytes) -> dict[str, Any]:
    if not content:
        raise ValueError("is empty")
    if content[8:9] == b"{":  # after the length of a header in JSON
        return _read_safetensors(content)
    try:
        tree = serialization.msgpack_restore(content)
    except Exception as error:  # of any type
        is_dict = 0x80 < content[0] <= 0x8F or content[0] in (0xDE, 0xDF)
        if is_dict and "incomplete" in str(error):
            raise ValueError("is cut short") from error
        raise ValueError(f"is of another kind or damaged ({error!r:.100})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {type(tree).__name__}, not a dict")
    if not any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(tree)):
        raise ValueError("holds no arrays")
    return tree


def _read_safetensors(content: bytes) -> dict[str, Any]:
    try:
        arrays = deserialize(content)
    except SafetensorError as error:
        raise ValueError(f"is a safetensors file that is cut short or damaged ({error})") from error
    names: dict[tuple[str, ...], str] = {}
    values = {}
    for name, array in arrays:
        path, dtype = tuple(name.replace(".", "/").split("/")), array["dtype"]
        if path in names:
            raise ValueError(f"has two arrays of one name, {names[path]} and {name}")
        dtype = _DTYPES.get(dtype) or f"{_KINDS.get(dtype[0])}{dtype[1:]}"
        try:
            values[path] = np.frombuffer(array["data"], np.dtype(dtype)).reshape(array["shape"])
        except TypeError as error:
            raise ValueError(f"has {name} in {array['dtype']}, which cannot be read") from error
        names[path] = name
    for path, name in names.items():
        for length in range(1, len(path)):
            if path[:length] in names:
                raise ValueError(
                    f"has an array {names[path[:length]]} and another inside it, {name}"
                )
    if not values:
        raise ValueError("holds no arrays")
    return unflatten_dict(values)
