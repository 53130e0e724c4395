"""The calls of a Linen network's modules, and what they compute."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.core
import flax.linen as nn
import jax
from flax.core.scope import CollectionFilter, union_filters
from flax.traverse_util import flatten_dict
from jax import Array

from interflow_jax.dataflow import Path

_TAPS = "interflow_taps"  # the collection of the outputs, and the flag of modules that sow them
_ONE_CALL = {"jit", "remat", "map_variables"}  # the transforms inside which an output is one array
_hashes = itertools.count()


@dataclass
class Call:
    """One call of a module.

    Attributes:
      path: the module's, below the network.
      end: how many calls had started when it returned.
      output: its first array, as a shape; None without one.
      transform: that around it by which it has no single output, such as "scan".
    """

    path: str
    end: int = 0
    output: Any = None
    transform: str = ""


class Calls:
    """Sows the output of every call of a network's modules, and notes the calls as they start.

    Flax's `capture_intermediates` would sow in networks that are applied inside this one, too, and
    twice for a module that calls its base class, into a collection that is the network's own.

    Its hash is never the same twice: nn.jit, whose cache has the flags in its keys, then traces
    every call. Of identical modules that share a trace only the first would be noted.
    """

    def __init__(self) -> None:
        self.all: list[Call] = []
        self._running: list[int] = []
        self._starts: dict[str, int] = {}  # the first call inside which a module was used

    def __hash__(self) -> int:
        return next(_hashes)

    def capture(
        self,
        network: nn.Module,
        variables: Any,
        rngs: dict[str, Array],
        mutable: CollectionFilter,
        /,
        *arguments: Any,
        **keywords: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Applies a network; returns its modules' outputs and the collections that changed."""

        def run(scope: Any) -> None:
            network.clone(parent=scope, _deep_clone=True)(*arguments, **keywords)

        # Transforms hand flags on; networks that are applied inside this one have none.
        apply = flax.core.apply(run, union_filters(mutable, _TAPS), {_TAPS: self})
        with nn.intercept_methods(self._intercept):
            changed = dict(apply(variables, rngs=rngs)[1])
        sown = flatten_dict(changed.pop(_TAPS, {}), sep="/")
        return {name.removesuffix("/__call__"): outputs for name, outputs in sown.items()}, changed

    def start(self, variable: Path) -> int:
        """The number of the first call inside which the module of a variable was used."""
        paths = ("/".join(map(str, variable[1:end])) for end in range(len(variable), 0, -1))
        return next(self._starts[path] for path in paths if path in self._starts)

    def _intercept(self, function: Callable, given: tuple, named: dict, context: Any) -> Any:
        scope = context.module.scope
        if scope is None or scope.flags.get(_TAPS) is not self:
            return function(*given, **named)
        path, around = "/".join(scope.path), self._running[-1:]
        of_subclass = any(self.all[number].path == path for number in self._running)
        is_call = context.method_name == "__call__" and not of_subclass
        start = len(self.all) if is_call else sum(around)
        self._starts[path] = min(start, self._starts.get(path, start))
        if not is_call:
            return function(*given, **named)
        self.all.append(call := Call(path))
        self._running.append(start)
        output = function(*given, **named)
        self._running.pop()
        call.end = len(self.all)
        arrays = [x for x in jax.tree.leaves(output) if hasattr(x, "shape")]
        if transforms := set(re.findall(r"(\w+)\(", scope.path_text)) - _ONE_CALL:
            call.transform = transforms.pop()
        elif arrays:  # networks may return numbers and None as well
            nn.Module.sow(context.module, _TAPS, "__call__", arrays[0])
            call.output = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
        return output
