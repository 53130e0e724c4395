"""A backbone from any Linen module, by the names of its layers (paper, III-C)."""

import contextlib
import difflib
import itertools
from collections import Counter
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

from interflow_jax.switch import switch_arguments

_TAPPED = "interflow_taps"  # the collection that carries outputs through nn.remat and nn.jit
_INSIDE = -1  # the number of every call inside nn.scan or nn.vmap
_traces = itertools.count()
_Call = tuple[str, int]  # a module's path, and which of its calls, counted from 0


class Layer(NamedTuple):
    """One call of a module inside a network.

    Attributes:
      path: the module's, below the network, such as "stage1/block2/conv"; "conv:1" for the second
        call of a module that is called more than once.
      shape: the output's; for a tuple, that of its first array.
      dtype: likewise.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any


def layers(network: nn.Module, *arguments: Any, **keywords: Any) -> list[Layer]:
    """What can be tapped in a network: every call of a module, in the order of the calls.

    From shapes alone: no parameter is made and nothing is computed. What lies inside `nn.scan` or
    `nn.vmap` has no single output, and is left out.

    Args:
      network: any Linen module.
      *arguments, **keywords: as for a call of it; `jax.ShapeDtypeStruct` will do for arrays.
    """
    outputs = {call: out for call, out in _outputs(network, arguments, keywords).items() if call[0]}
    calls = Counter(path for path, _ in outputs)
    return [
        Layer(f"{path}:{number}" if calls[path] > 1 else path, array.shape, array.dtype)
        for (path, number), output in outputs.items()
        for array in _arrays(output)[:1]
        if number != _INSIDE
    ]


class Taps(nn.Module):
    """A backbone that returns what named layers of an unmodified network compute.

    No layer after the last tap is computed, and its parameters do not exist.

    Attributes:
      network: any Linen module that takes images first.
      taps: paths as `layers` gives them, in the order of the branches, shallow to deep. For a
        module called more than once, the last call counts, or that of "path:0", "path:1", ....
      after: applied to every tapped output, such as `nn.relu`: what networks compute between
        modules has no name.
      switch: the network's training switch, where its signature does not tell.
    """

    network: nn.Module
    taps: tuple[str, ...]
    after: Callable[[Array], Array] | None = None
    switch: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The branches' labels: the taps."""
        return tuple(self.taps)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> list[Array]:
        """Computes the outputs of the tapped layers.

        Args:
          images: whatever the network takes, usually [batch, height, width, channels], float.
          train: passed to the network's training switch, if it has one.

        Returns:
          An array per tap, in their order; for a layer that returns a tuple, its first.

        Raises:
          ValueError: for a tap that the network does not have, naming the closest that it has, or
            one inside `nn.scan` or `nn.vmap`, naming the layer around it that can be tapped.
        """
        # The network runs on its own: the outermost call need not know of the taps' collection.
        network = self.network.clone(parent=None, _deep_clone=True, _reset_names=True)
        keywords = switch_arguments(network, train, self.switch)
        outputs = _outputs(network, (images,), keywords)
        calls = [_find(tap, outputs) for tap in self.taps]
        waiting, numbers = set(calls), Counter()

        def tap(function: Callable, arguments: tuple, named: dict, context: Any) -> Any:
            if context.method_name != "__call__":
                return function(*arguments, **named)
            call = _number(context.module, numbers, traces)
            if not waiting:
                # From here on the network computes with zeros, which XLA drops. An exception would
                # end it, but nn.remat and nn.jit would lose the parameters that they have made.
                return jax.tree.map(
                    lambda x: jnp.zeros(x.shape, x.dtype) if hasattr(x, "shape") else x,
                    outputs[call],
                )
            output = function(*arguments, **named)
            if call in waiting:
                waiting.remove(call)
                # A variable, not a Python value: nn.remat and nn.jit carry it out.
                context.module.put_variable(_TAPPED, str(call[1]), _arrays(output)[0])
            return output

        streams = self.scope.rngs if self.scope else {}
        rngs = {name: self.make_rng(name) for name in streams}
        rngs |= _new_trace()
        with contextlib.ExitStack() as traces, nn.intercept_methods(tap):
            if self.is_initializing():
                updates: dict[str, Any] = dict(network.init(rngs, images, **keywords))
            else:
                variables = self.network.variables
                # Some networks tell by mutable statistics that they train.
                changing = [name for name in variables if self.is_mutable_collection(name)]
                mutable = [*(changing if train else ()), _TAPPED]
                changes = network.apply(variables, images, rngs=rngs, mutable=mutable, **keywords)
                updates = dict(cast(tuple, changes)[1])
        tapped: Any = updates.pop(_TAPPED)
        for collection, values in updates.items():
            for name, value in values.items():
                self.network.put_variable(collection, name, value)
        feature_maps: list[Any] = [
            reduce(lambda tree, name: tree[name], [*path.split("/"), str(number)], tapped)
            for path, number in calls
        ]
        return [self.after(x) for x in feature_maps] if self.after else feature_maps


def _outputs(network: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> dict[_Call, Any]:
    """The output of every call of a module, as shapes, in the order of the calls."""
    outputs: dict[_Call, Any] = {}
    numbers: Counter[str] = Counter()

    def note(function: Callable, given: tuple, named: dict, context: Any) -> Any:
        if context.method_name != "__call__":
            return function(*given, **named)
        call = _number(context.module, numbers, traces)
        outputs[call] = None  # the place in the order is that of the call's start
        output = function(*given, **named)
        outputs[call] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x, output
        )
        return output

    def initialize(key: Array, given: tuple) -> Any:
        return network.init_with_output({"params": key, **_new_trace()}, *given, **keywords)

    with contextlib.ExitStack() as traces, nn.intercept_methods(note):
        jax.eval_shape(initialize, jax.random.key(0), arguments)
    return outputs


def _number(module: nn.Module, numbers: Counter, traces: contextlib.ExitStack) -> _Call:
    """Counts a call of a module; not those that nn.scan or nn.vmap trace.

    nn.jit traces identical modules only once, and no interceptor sees the others: so every call
    puts the next into another tracing context, which names nothing that computes.
    """
    path = "/".join(module.path)
    if not module.is_mutable_collection(_TAPPED):
        return path, _INSIDE
    numbers[path] += 1
    traces.enter_context(set_xla_metadata(**{_TAPPED: str(numbers.total())}))
    return path, numbers[path] - 1


def _new_trace() -> dict[str, Array]:
    """A random stream that nobody draws from, under a name that no trace has had.

    Without it nn.jit reuses the trace of an earlier call of the network.
    """
    return {f"interflow_trace_{next(_traces)}": jax.random.key(0)}


def _find(tap: str, outputs: dict[_Call, Any]) -> _Call:
    """The call that a tap names; raises ValueError for none."""
    path, colon, number = tap.partition(":")
    calls = [call for call in outputs if call[0] == path != ""]
    if colon:
        calls = [call for call in calls if str(call[1]) == number]
    if not calls:
        shapes = {
            path: " ".join(str(x.shape) for x in _arrays(output))
            for (path, call), output in outputs.items()
            if path and call != _INSIDE
        }
        raise unknown_layer(tap, shapes)
    if calls[-1][1] == _INSIDE:
        around = path
        while around and (around, 0) not in outputs:
            around = around.rpartition("/")[0]
        raise ValueError(
            f"layer {tap!r} is inside nn.scan or nn.vmap and has no single output; tap "
            + (f"the layer around it, {around!r}" if around else "one before or after it")
        )
    return calls[-1]


def _arrays(output: Any) -> list[Any]:
    """The arrays of an output, or their shapes; networks may return numbers and None as well."""
    return [leaf for leaf in jax.tree.leaves(output) if hasattr(leaf, "shape")]


def unknown_layer(tap: str, shapes: dict[str, str]) -> ValueError:
    """The error for a tap that names no layer of a network; `shapes` are its layers' in words."""
    close = difflib.get_close_matches(tap.partition(":")[0], shapes, n=3, cutoff=0.0)
    named = ", ".join(f"{name} {shapes[name]}" for name in close)
    return ValueError(f"the network has no layer {tap!r}; the closest are {named}")
