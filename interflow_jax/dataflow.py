"""Networks of which only a part is needed: the rest is not computed, and need not exist."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax.core.scope import subtract_filters, union_filters
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from interflow_jax.switch import switch_arguments

_LISTED = 5  # variables that an error names
Path = tuple[Any, ...]  # a variable's: its collection, the modules around it, its own name


def run_part(
    parent: nn.Module,
    child: nn.Module,
    images: Array,
    train: bool,
    switch: str | None,
    outputs: Callable[..., Any],
    exists: Callable[[Path], bool] | None = None,
) -> list[Array]:
    """Computes feature maps of a submodule, inside the compact method of a module.

    Args:
      parent, child: the two modules, bound.
      images: what the child takes.
      train, switch: whether it trains, and how it is told (see `switch_arguments`). In evaluation
        `batch_stats` are constant: some networks train where they are not.
      outputs: takes the child alone, its variables, random streams, the collections that it may
        change and its arguments; returns feature maps and the collections that changed.
      exists: whether a variable is made at initialisation; None for those that the maps need, in
        evaluation or in training.

    Raises:
      ValueError: for a map that needs a variable that does not exist.
    """
    # On its own, it can have collections that the outermost call does not know of.
    alone = child.clone(parent=None, _deep_clone=True, _reset_names=True)
    scope: Any = parent.scope
    rngs = {name: parent.make_rng(name) for name in scope.rngs}
    init: Any = partial(alone.init, **switch_arguments(child, train, switch))

    def call(train: bool, own: Mapping[Path, Any], whole: Mapping[Path, Any]) -> Any:
        mutable = subtract_filters(scope.mutable, () if train else "batch_stats")
        # Nobody could declare what no variable is of; what trains may want to change it.
        new = {path[0] for path in whole} - {path[0] for path in own} if train else ()
        arguments = switch_arguments(child, train, switch)

        def function(variables: dict[str, Any]) -> Any:
            return outputs(alone, variables, rngs, union_filters(mutable, new), images, **arguments)

        return _evaluate(function, own, whole)

    if parent.is_initializing():
        changed = flatten_dict(init(rngs, images))
        maps, _, needed = call(train, changed, {})
        is_made = exists or (needed | call(not train, changed, {})[2]).__contains__
        changed = {path: x for path, x in changed.items() if is_made(path)}
    else:
        shapes = jax.eval_shape(init, {"params": jax.random.key(0)} | rngs, images)
        own = flatten_dict(child.variables)
        maps, changed, _ = call(train, own, flatten_dict(shapes))
        # A name at the top is written with all that is below it.
        changed = {p: x for p, x in (own | changed).items() if child.is_mutable_collection(p[0])}
    for collection, parts in unflatten_dict(changed).items():
        for name, value in parts.items():
            child.put_variable(collection, name, value)
    return maps


def _evaluate(
    function: Callable[[dict[str, Any]], Any], own: Mapping[Path, Any], whole: Mapping[Path, Any]
) -> tuple[list[Array], dict[Path, Any], set[Path]]:
    """Computes feature maps, and those changed variables that need no absent one.

    The function is traced with all variables, the absent ones of `whole` by their shapes, and
    reduced to what the results need. Also returns which variables the maps need.
    """
    whole = {**whole, **own}
    absent, values = whole.keys() - own.keys(), list(whole.values())

    def program(values: list[Any]) -> Any:
        return function(unflatten_dict(dict(zip(whole, values, strict=True))))

    traced, result = jax.make_jaxpr(program, return_shape=True)(values)
    inputs = dict(zip(whole, _numbered(values), strict=True))
    jaxpr = _without_effects_of(traced.jaxpr, jax.tree.leaves([inputs[path] for path in absent]))

    def reduced(outputs: Any) -> tuple[Jaxpr, list[bool], set[Path]]:
        wanted = set(jax.tree.leaves(outputs))
        part, used = dce_jaxpr(jaxpr, [n in wanted for n in range(len(jaxpr.outvars))])
        needed = {path for path, x in inputs.items() if any(used[n] for n in jax.tree.leaves(x))}
        return part, used, needed

    maps, changed = _numbered(result)
    needed = reduced(maps)[2]
    if lacking := needed & absent:
        names = sorted("/".join(map(str, path)) for path in lacking)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise ValueError(
            f"the feature maps need variables that are missing: {', '.join(names[:_LISTED])}{more}"
        )
    changed = {path: x for path, x in flatten_dict(dict(changed)).items() if path not in absent}
    if absent & reduced(list(changed.values()))[2]:
        changed = {path: x for path, x in changed.items() if not absent & reduced(x)[2]}
    numbers = jax.tree.leaves((maps, list(changed.values())))
    part, used, _ = reduced(numbers)
    leaves = [leaf for leaf, use in zip(jax.tree.leaves(values), used, strict=True) if use]
    arrays = jaxpr_as_fun(ClosedJaxpr(part, traced.consts))(*leaves)
    array = dict(zip(sorted(set(numbers)), arrays, strict=True)).__getitem__
    return (
        jax.tree.map(array, maps),
        {p: jax.tree.map(array, x) for p, x in changed.items()},
        needed,
    )


def _numbered(tree: Any) -> Any:
    """The tree with the numbers of its leaves in their places."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(range(len(leaves)))


def _without_effects_of(jaxpr: Jaxpr, inputs: Iterable[int]) -> Jaxpr:
    """Lets go of effects, such as printing, that need inputs which are absent."""
    tainted, equations = {jaxpr.invars[number] for number in inputs}, []
    for equation in jaxpr.eqns:
        if any(isinstance(x, Var) and x in tainted for x in equation.invars):
            tainted.update(equation.outvars)
            equation = equation.replace(effects=set())
        equations.append(equation)
    return jaxpr.replace(eqns=equations)
