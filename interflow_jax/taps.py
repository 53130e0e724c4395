"""A backbone from any network, by the names of its layers (paper, III-C)."""

import difflib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
from flax.core import DenyList
from jax import Array

from interflow_jax.dataflow import Path, run_part
from interflow_jax.linen_taps import Call, Calls
from interflow_jax.nnx_taps import nnx_outputs, nnx_shapes

Network = nn.Module | Callable[..., Any]
"""A Linen module, an NNX module, or a function that makes one as `make(rngs=nnx.Rngs(...))`."""


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


def layers(network: Network, *arguments: Any, **keywords: Any) -> list[Layer]:
    """What can be tapped in a network: every call of a module, in the order of the calls.

    From shapes alone: no parameter is made and nothing is computed. What has no single output, as
    inside `nn.scan` or `nn.vmap`, is left out. NNX modules are in the order of their paths.

    Args:
      network: any network.
      *arguments, **keywords: as for a call of it; `jax.ShapeDtypeStruct` will do for arrays.
    """
    if not isinstance(network, nn.Module):
        outputs = nnx_shapes(network, *arguments, **keywords)
        return [Layer(path, array.shape, array.dtype) for path, array in outputs.items()]
    calls = Calls()

    leaves, structure = jax.tree.flatten(arguments)
    arrays = {n: leaf for n, leaf in enumerate(leaves) if hasattr(leaf, "shape")}  # not switches

    def run(key: Array, arrays: dict[int, Array]) -> None:
        rngs, mutable = {"params": key}, DenyList("batch_stats")  # evaluation
        given = jax.tree.unflatten(
            structure, [arrays.get(n, leaf) for n, leaf in enumerate(leaves)]
        )
        variables = network.init(rngs, *given, **keywords)
        calls.capture(network, variables, rngs, mutable, *given, **keywords)

    jax.eval_shape(run, jax.random.key(0), arrays)
    return _layers(calls.all)


class Taps(nn.Module):
    """A backbone that returns what named layers of an unmodified network compute.

    No layer after the last tap is computed. In Linen its parameters do not exist; an NNX network
    makes all of its parameters at once, and the gradients of those are zero.

    Attributes:
      network: a Linen module that takes images first, an NNX module, whose parameters are then the
        initial ones, or a function that makes one, called as `make(rngs=nnx.Rngs(...))`.
      taps: paths as `layers` gives them, in the order of the branches, shallow to deep; of another
        order in a Linen network a warning says so. For a module called more than once, the last
        call counts, or in Linen that of "path:0", ....
      after: applied to every tapped output, such as `nn.relu`: what networks compute between
        modules has no name.
      switch: a Linen network's training switch, where its signature does not tell.
    """

    network: Network
    taps: Sequence[str]
    after: Callable[[Array], Array] | None = None
    switch: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for taps that are no names, or a network that is none."""
        taps = (self.taps,) if isinstance(self.taps, str) else self.taps
        if not (isinstance(taps, list | tuple) and taps and all(isinstance(x, str) for x in taps)):
            raise ValueError(
                f"taps are {taps!r}; give one or more names of layers (ij.layers lists them)"
            )
        self.taps = tuple(taps)
        _check(self.network)
        if self.switch is not None and not isinstance(self.network, nn.Module):
            raise ValueError(f"switch is {self.switch!r}, but an NNX network has modes of its own")
        super().__post_init__()

    @property
    def labels(self) -> tuple[str, ...]:
        """The branches' labels: the taps."""
        return tuple(self.taps)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> list[Array]:
        """Computes the outputs of the tapped layers.

        Args:
          images: whatever the network takes, usually [batch, height, width, channels], float.
          train: passed to a Linen network's training switch, if it has one; the mode of an NNX
            network. In evaluation `batch_stats` are constant: some networks train where they are
            not.

        Returns:
          An array per tap, in their order; for a layer that returns a tuple, its first.

        Raises:
          ValueError: for a tap that the network does not have, naming the closest that it has, one
            that has no single output, as inside `nn.scan`, naming the layer around it, or
            variables that lack some that the taps need.
        """
        tapped = self._linen if isinstance(self.network, nn.Module) else self._nnx
        feature_maps = tapped(cast(Any, self.network), images, train)
        return [self.after(x) for x in feature_maps] if self.after else feature_maps

    @nn.nowrap
    def _linen(self, network: nn.Module, images: Array, train: bool) -> list[Array]:
        calls = Calls()

        def outputs(*arguments: Any, **keywords: Any) -> Any:
            sown, changed = calls.capture(*arguments, **keywords)
            tapped = [_find(tap, calls.all) for tap in self.taps]
            ends = [call.end for _, call in tapped]
            if ends != sorted(ends):
                told = "branches are in the order given, and the last predicts where one does"
                words = f"taps {self.taps} are not in the order of the calls: {told}"
                warnings.warn(words, stacklevel=2)
            return [sown[call.path][number] for number, call in tapped], changed

        def exists(path: Path) -> bool:
            return calls.start(path) < max(_find(tap, calls.all)[1].end for tap in self.taps)

        return run_part(self, network, images, train, self.switch, outputs, exists)

    @nn.nowrap
    def _nnx(self, network: Any, images: Array, train: bool) -> list[Array]:
        outputs = nnx_outputs(network, images, train)
        for tap in self.taps:
            if tap not in outputs:
                raise _unknown_layer(tap, outputs)
            if outputs[tap].shape[:1] != images.shape[:1]:
                raise ValueError(
                    f"layer {tap!r} gives {outputs[tap].shape} for a batch of {len(images)}: it is "
                    "inside nnx.scan, or has no output per image; tap another"
                )
        return [outputs[tap] for tap in self.taps]


def _check(network: Any) -> None:
    """Raises ValueError for what is no network and makes none."""
    if isinstance(network, nn.Module):
        return
    if inspect.isclass(network) and issubclass(network, nn.Module):
        raise ValueError(f"network is the class {network.__name__}; give an instance of it")
    if not callable(network):
        raise ValueError(
            f"network is a {type(network).__name__}; give a Linen module, an NNX module, or a "
            "function of rngs that makes one"
        )
    if inspect.isroutine(network) and "rngs" not in inspect.signature(network).parameters:
        raise ValueError(
            f"network is {network.__name__}, which takes no rngs; give what it returns"
        )


def _layers(calls: list[Call]) -> list[Layer]:
    calls = [call for call in calls if call.path and call.output]
    counts, numbers = Counter(call.path for call in calls), Counter()
    result = []
    for call in calls:
        path = f"{call.path}:{numbers[call.path]}" if counts[call.path] > 1 else call.path
        numbers[call.path] += 1
        result.append(Layer(path, call.output.shape, call.output.dtype))
    return result


def _find(tap: str, calls: list[Call]) -> tuple[int, Call]:
    """The call that a tap names, and its number from its module's last; ValueError for none."""
    path, colon, number = tap.partition(":")
    own = [call for call in calls if call.path == path != ""]
    outputs = [call for call in own if call.output]
    named = [n for n in range(len(outputs)) if not colon or str(n) == number]
    if named:
        return named[-1] - len(outputs), outputs[named[-1]]
    transforms = [call.transform for call in own if call.transform]
    if not transforms:
        raise _unknown_layer(tap, {layer.path: layer for layer in _layers(calls)})
    tappable = {call.path for call in calls if call.output}
    around = path
    while around and around not in tappable:
        around = around.rpartition("/")[0]
    raise ValueError(
        f"layer {tap!r} is inside nn.{transforms[0]} and has no single output; tap "
        + (f"the layer around it, {around!r}" if around else "one before or after it")
    )


def _unknown_layer(tap: str, outputs: Mapping[str, Any]) -> ValueError:
    close = difflib.get_close_matches(tap.partition(":")[0], outputs, n=3, cutoff=0.0)
    named = ", ".join(f"{name} {outputs[name].shape}" for name in close)
    return ValueError(f"the network has no layer {tap!r}; the closest are {named}")
