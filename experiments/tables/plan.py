"""Every table by its name, and the runs that it wants for a command line."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from experiments.tables import presets
from experiments.tables.best_rate import at_best_rates, kind
from experiments.tables.runs import Frame, match
from interflow_jax.cli.config import RunConfig
from interflow_jax.cli.flags import integers, names, numbers
from interflow_jax.data.recipes import recipe

AXES: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "methods": names,
    "depths": lambda text: tuple(sorted(integers(text))),
    "layouts": names,
    "downsamples": names,
    "learning_rates": numbers,
}
"""Axes of the command line, how each is read, by the field of `RunConfig` that it is plural of."""


def tables() -> dict[str, ModuleType]:
    """The modules beside this one that have `recipes`, by their names on the command line."""
    package = importlib.import_module(__package__ or "")
    found = (each.name for each in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in found]
    wanting = {number(module): module for module in modules if hasattr(module, "recipes")}
    return dict(sorted(wanting.items()))


def stem(table: ModuleType) -> str:
    """The name of a table's files."""
    return table.__name__.rpartition(".")[2]


def number(table: ModuleType) -> str:
    """A table's name on the command line, which for the paper's is a number."""
    return stem(table).removeprefix("table")


def plan(
    table: ModuleType,
    runs: Frame,
    datasets: Sequence[str],
    seeds: tuple[int, ...],
    axes: dict[str, tuple[Any, ...]],
    preset: str = presets.DEFAULT,
    **given: Any,
) -> Frame:
    """The runs of a table as `match` gives them, and in `chosen` what else is to be told of each.

    Args:
      runs: all finished runs.
      axes: values of some of `AXES`, in place of the table's (see `along`).
      given: fields of every run, in place of the preset's and the table's.

    Raises:
      ValueError: for a field that is given twice, or an impossible run.
    """
    wanted = {axis.removesuffix("s"): values for axis, values in axes.items()}
    for name in wanted.keys() & given.keys():
        raise ValueError(f"--{name} and --{name}s: give one of them")
    configs, chosen = [], {}
    for dataset in datasets:
        base = presets.base(preset, dataset, **given)
        if getattr(table, "HOLDS_OUT", False):
            base = _with_held_out(base)
        recipes = table.recipes(base)
        fixed = {name: (base.flat()[name],) for name in given if name in base.flat()}
        for name, values in (fixed | wanted).items():
            # A table that multiplies the epochs has others beside those that are given.
            if name != "epochs" or values[0] not in {each.training.epochs for each in recipes}:
                recipes = along(recipes, name, values)
        for config in recipes:
            config.check()
        if hasattr(table, "CHOOSE"):
            recipes, best = at_best_rates(table, number(table), recipes, runs, seeds)
            chosen |= {each: columns for each, (_, columns) in best.items()}
        configs += [config.replace(seed=seed) for config in recipes for seed in seeds]
    configs = list(dict.fromkeys(configs))
    for seed in seeds:
        configs[0].replace(seed=seed).check()
    planned = match(runs, configs)
    return planned.assign(chosen=[chosen.get(kind(config), {}) for config in planned["config"]])


def along(configs: list[RunConfig], name: str, values: Sequence[Any]) -> list[RunConfig]:
    """Some runs at given values of a field: their own, or those of the first with another value."""
    first = configs[0].flat()[name]
    own = {config.flat()[name] for config in configs}
    return [
        config.replace(**{name: value})
        for value in values
        for config in configs
        if config.flat()[name] == (value if value in own else first)
    ]


def _with_held_out(base: RunConfig) -> RunConfig:
    """Holds out the last tenth of a training split that would otherwise be trained on whole."""
    dataset, size = base.data.dataset, base.data.train_size
    whole = recipe(dataset).train_examples
    if whole is None and size is None:
        raise ValueError(
            f"{dataset}: the table needs training examples that no run trains on; give a "
            "--train_size below the size of the training split"
        )
    return base.replace(train_size=whole * 9 // 10) if whole and size in (None, whole) else base
