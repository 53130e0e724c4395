"""Puts parameters that were trained elsewhere into the backbone of a model."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import load

_LISTED = 5  # arrays that an error names


def with_backbone(variables: Any, pretrained: Any) -> dict[str, Any]:
    """Puts a network's variables into a model's backbone, and leaves all else as it is.

    Args:
      variables: of an `Interflow` over `Taps`, `NNXTaps` or the network itself; arrays, or
        `jax.ShapeDtypeStruct` to check whether they fit.
      pretrained: the network's own variables, {"params": ..., "batch_stats": ...}, or its
        parameters alone. What lies after the last tap is not needed and is left out.

    Returns:
      The model's variables with copies of the pretrained ones, in the model's dtypes.

    Raises:
      ValueError: for a model without a backbone, or arrays of its backbone that `pretrained` lacks
        or has in another shape; the message has their paths and shapes.
    """
    pretrained = serialization.to_state_dict(pretrained)
    if "params" not in pretrained:
        pretrained = {"params": pretrained}
    of_params: dict[str, Any] = traverse_util.flatten_dict(
        serialization.to_state_dict(variables["params"]), sep="/"
    )
    if "backbone" not in variables["params"]:
        raise ValueError(
            f"the model's parameters are {', '.join(variables['params'])}; pretrained ones go into "
            "those of a backbone, as an Interflow has"
        )
    below = _backbone(of_params, traverse_util.flatten_dict(pretrained["params"], sep="/"))
    problems, result = [], {}
    for collection, of_model in variables.items():
        flat: dict[str, Any] = traverse_util.flatten_dict(
            serialization.to_state_dict(of_model), sep="/"
        )
        given: dict[str, Any] = traverse_util.flatten_dict(pretrained.get(collection, {}), sep="/")
        for path in flat:
            if not path.startswith(below):
                continue
            name, own = path.removeprefix(below), flat[path]
            if name not in given:
                problems.append(f"{collection}/{name} {own.shape} is missing")
            elif np.shape(given[name]) != own.shape:
                problems.append(
                    f"{collection}/{name} is {np.shape(given[name])}, the backbone's {own.shape}"
                )
            else:
                flat[path] = jnp.array(given[name], own.dtype)  # a copy: training consumes it
        result[collection] = serialization.from_state_dict(
            of_model, traverse_util.unflatten_dict(flat, sep="/")
        )
    if problems:
        more = f", and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise ValueError(
            f"the pretrained parameters do not fit the backbone: {', '.join(problems[:_LISTED])}"
            f"{more}; they have {_examples(pretrained)}"
        )
    return result


def _backbone(own: Any, given: Any) -> str:
    """Where the network's own names begin: below `Taps.network`, or the backbone itself."""
    inside = [path.removeprefix("backbone/") for path in own if path.startswith("backbone/")]
    tapped = all(path.startswith("network/") for path in inside)
    return "backbone/network/" if tapped and not set(inside) & set(given) else "backbone/"


def _examples(pretrained: dict[str, Any]) -> str:
    flat = traverse_util.flatten_dict(pretrained, sep="/")
    return ", ".join(f"{path} {np.shape(array)}" for path, array in list(flat.items())[:3])


def read_pretrained(file: str | Path) -> dict[str, Any]:
    """Reads a network's variables: safetensors, or Flax's msgpack.

    Names in a safetensors file are paths such as "params/conv1/kernel" or "params.conv1.kernel";
    without a collection in front they are parameters.

    Returns:
      {"params": ..., "batch_stats": ...} as nested dicts of numpy arrays.

    Raises:
      ValueError: for a file that is missing, is neither, or holds no arrays.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"the pretrained parameters {file} cannot be read: {error}") from error
    try:
        if str(file).endswith(".safetensors"):
            arrays = {tuple(k.replace(".", "/").split("/")): v for k, v in load(content).items()}
            tree = traverse_util.unflatten_dict(arrays)
        else:
            tree = serialization.msgpack_restore(content)
        if not isinstance(tree, dict) or not jax.tree.leaves(tree):
            raise ValueError("it holds no arrays by name")
    except Exception as error:  # both readers raise errors of any type
        raise ValueError(
            f"{file} is neither safetensors (by its name, *.safetensors) nor Flax's msgpack: "
            f"{error}"
        ) from error
    return tree if "params" in tree else {"params": tree}
