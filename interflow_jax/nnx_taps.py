"""NNX networks inside Linen modules, and what their modules compute."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax.errors import InvalidRngError
from flax.traverse_util import unflatten_dict
from jax import Array


def nnx_outputs(network: Callable[..., Any], images: Array, train: bool) -> dict[str, Array]:
    """What every module of an NNX network computes, by its attribute path.

    For the compact method of a Linen module, which gets the network's variables, named "network".
    """
    linen = _to_linen(network, name="network")
    check = train and not linen.is_initializing()
    absent = {
        "draws": check and not (linen.scope and linen.scope.rngs),
        "statistics": check and not linen.is_mutable_collection("batch_stats"),
    }
    outputs, sown = linen(images, nnx_method=partial(_outputs, train=train, **absent))
    if linen.is_mutable_collection("intermediates"):
        for name, value in sown.items():
            linen.put_variable("intermediates", name, value)
    return outputs


def nnx_shapes(network: Callable[..., Any], images: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of those of `nnx_outputs` that have an output per image; nothing is computed."""
    run = partial(_to_linen(network).init_with_output, nnx_method=partial(_outputs, train=False))
    ((outputs, _), _) = jax.eval_shape(run, jax.random.key(0), images)
    return {path: x for path, x in outputs.items() if x.shape[:1] == images.shape[:1]}


def collections_of(variables: Any) -> Any:
    """Linen's collections of an NNX state or network; anything else as it is."""
    nnx: Any = sys.modules.get("flax.nnx")  # whoever has such a state has imported it
    if nnx is None or not isinstance(variables, nnx.State | nnx.Module):
        return variables
    flat = {
        (nnx.variable_name_from_type(type(x), allow_register=True), *map(str, path)): x.get_value()
        for path, x in nnx.to_flat_state(nnx.state(variables))
        if not isinstance(x, nnx.RngState)
    }
    return unflatten_dict(flat)


def _to_linen(network: Callable[..., Any], name: str | None = None) -> nn.Module:
    from flax import nnx  # slow to import, and of no use to the rest of the library

    def make(rngs: Any) -> Any:
        # The bridge passes the streams that Linen has, at initialisation "params" alone, and in a
        # call a "default" that is always the same.
        streams = {name: stream() for name, stream in rngs.items()}
        first = next(iter(streams))
        if "default" not in streams:
            streams["default"] = streams[first]
        elif first != "default":
            streams["default"] = jax.random.fold_in(streams[first], 1)
        if isinstance(network, nnx.Module):
            copy = nnx.clone(network)
            tags = {x.tag for _, x in nnx.iter_graph(copy) if isinstance(x, nnx.RngKey)}
            keys = {
                tag: streams.get(tag, jax.random.fold_in(streams["default"], number))
                for number, tag in enumerate(sorted(tags))
            }
            nnx.reseed(copy, policy="match_shape", **keys)
            return copy
        made = network(rngs=nnx.Rngs(**streams))
        if not isinstance(made, nnx.Module):
            raise ValueError(f"the network is a {type(made).__name__}, not a flax.nnx.Module")
        return made

    return nnx.bridge.ToLinen(make, name=name)


def _outputs(
    network: Any, images: Array, train: bool, draws: bool = False, statistics: bool = False
) -> tuple[dict[str, Array], Any]:
    """What modules compute and sow; raises where what training needs is absent, as Linen does."""
    from flax import nnx

    variables = [x for _, x in nnx.iter_graph(network) if isinstance(x, nnx.Variable)]
    if draws and (tags := [x.tag for x in variables if isinstance(x, nnx.RngKey)]):
        raise InvalidRngError(f'{type(network).__name__} needs PRNG for "{min(tags)}"')
    if statistics and any(isinstance(x, nnx.BatchStat) for x in variables):
        raise ValueError(
            f"{type(network).__name__} has statistics that change in training: apply it with "
            'mutable=["batch_stats"], and keep what comes out'
        )

    class Output(nnx.Variable):
        """Apart from what the network itself sows."""

    (network.train if train else network.eval)()
    kinds = (Output, nnx.Intermediate)
    _, outputs, sown = nnx.capture(network, *kinds, method_outputs=Output)(images)
    arrays = {
        "/".join(map(str, path[:-1])): array
        for path, calls in nnx.to_flat_state(outputs)
        if path[-1] == "__call__" and path[:-1]
        for array in jax.tree.leaves(calls.get_value()[-1])[:1]
    }
    return arrays, nnx.to_pure_dict(sown)
