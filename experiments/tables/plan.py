"""Every table by its name, and the runs that it wants for a command line."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from experiments.tables import presets
from experiments.tables.runs import Frame, match
from interflow_jax.cli.config import RunConfig, as_flag
from interflow_jax.cli.parser import integers, names, numbers
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
    unchosen: bool = True,
    **given: Any,
) -> Frame:
    """The runs of a table as `match` gives them, and in `chosen` what else is to be told of each.

    Args:
      runs: all finished runs.
      axes: values of some of `AXES`, in place of the table's (see `along`).
      unchosen: whether a recipe whose rate no runs have chosen yet is an error; else it is left
        out, as one without a finished run.
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
            recipes = along(recipes, name, values)
            if not recipes:
                raise ValueError(f"--{name}={as_flag(values)}: no run can have that; see --help")
        for config in recipes:
            config.check()
        if hasattr(table, "CHOOSE"):
            recipes, best = _at_best_rates(table, recipes, runs, seeds, unchosen)
            chosen |= {each: columns for each, (_, columns) in best.items()}
        for config in recipes:
            own = config.places.seeds if seeds == table.SEEDS else None
            configs += [config.replace(seed=seed, seeds=None) for seed in own or seeds]
    if not configs:
        return match(runs, [base])[:0].assign(chosen=[])
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


Best = dict[RunConfig, tuple[RunConfig, dict[str, Any]]]
"""By `kind`, a configuration at its best rate, and in columns how that was chosen."""


def kind(config: RunConfig) -> RunConfig:
    """What runs that differ only by seed and learning rate have in common."""
    return config.replace(seed=0, learning_rate=0.0)


def best_rates(runs: Frame) -> Best:
    """The best rates among a matched frame's runs, of kinds that have runs at each of their rates.

    By the held-out accuracy of the last epoch, in percent, and the mean over seeds: on all images
    that no run trains on, where every run measured that, else on the tenth that every epoch is
    measured on. At an end of the rates tried, which is marked, a better one may lie beyond.
    """
    best = {}
    for alike, inside in runs.assign(kind=runs["config"].map(kind)).groupby("kind", sort=False):
        means = inside.groupby("learning_rate")[held_out(inside)].mean()
        if means.notna().all():
            rate, rates = float(means.idxmax()), list(means.index)
            ends = {rates[-1]: " (the highest)", rates[0]: " (the lowest)"}
            name = f"{rate:g}{ends.get(rate, '') if len(rates) > 1 else ''}"
            columns = {f"best rate of {len(rates)}": name, "held-out accuracy": float(means[rate])}
            best[alike] = alike.replace(learning_rate=rate), columns
    return best


def held_out(runs: Frame) -> str:
    """The column of the accuracy on held-out images that all of some runs have."""
    return "held_out_accuracy" if runs["held_out_accuracy"].notna().all() else "validation_accuracy"


def _at_best_rates(
    table: ModuleType,
    recipes: list[RunConfig],
    runs: Frame,
    seeds: tuple[int, ...],
    unchosen: bool,
) -> tuple[list[RunConfig], Best]:
    """The recipes at the best of their rates; seeds that are to choose keep every rate.

    A table with `CHOOSE`, the name of a table and seeds, has each of its `recipes` at the rate that
    is best by that table's runs of these seeds, which test no rate that they chose unless `SEEDS`
    has them.
    """
    chooser, choosing = table.CHOOSE
    if chooser == number(table) and {*seeds} <= {*choosing}:
        return recipes, {}
    common = {*seeds} & {*choosing}
    if common and not common & {*table.SEEDS}:
        raise ValueError(f"seed {min(common)} chose the learning rates; give --seeds that did not")
    alike: dict[RunConfig, list[RunConfig]] = {}
    for config in recipes:
        alike.setdefault(kind(config), []).append(config)
    several = [config for same in alike.values() if len(same) > 1 for config in same]
    tried = [config.replace(seed=seed) for config in several for seed in choosing]
    best = best_rates(match(runs, tried)) if tried else {}
    for each, same in alike.items():
        if len(same) > 1 and each not in best and unchosen:
            raise ValueError(
                f"{each.model.method} ({each.model.backbone}) on {each.data.dataset} has not a "
                f"held-out accuracy at each of {len(same)} learning rates; first train "
                f"--table={chooser} --seeds={as_flag(choosing)} with the same flags"
            )
    chosen = [
        best[each][0] if each in best else same[0]
        for each, same in alike.items()
        if each in best or len(same) == 1
    ]
    return chosen, best


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
