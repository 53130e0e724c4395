"""Configurations at the learning rate that is best for each on held-out training examples.

A table with `CHOOSE`, the name of a table and seeds, has its `recipes` at one rate each, the best
by that table's runs of these seeds, which test no rate that they chose unless `SEEDS` has them.
"""

from types import ModuleType
from typing import Any

from experiments.tables.runs import Frame, match
from interflow_jax.cli.config import RunConfig, as_flag

Best = dict[RunConfig, tuple[RunConfig, dict[str, Any]]]
"""By `kind`, a configuration at its best rate, and in columns how that was chosen."""


def kind(config: RunConfig) -> RunConfig:
    """What runs that differ only by seed and learning rate have in common."""
    return config.replace(seed=0, learning_rate=0.0)


def best_rates(runs: Frame) -> Best:
    """The best rates among a matched frame's runs, of kinds that have runs at each of their rates.

    By the held-out accuracy of the last epoch, in percent, and the mean over seeds. At an end of
    the rates tried, which is marked, a better one may lie beyond.
    """
    best = {}
    for alike, inside in runs.assign(kind=runs["config"].map(kind)).groupby("kind", sort=False):
        means = inside.groupby("learning_rate")["validation_accuracy"].mean()
        if means.notna().all():
            rate, rates = float(means.idxmax()), list(means.index)
            ends = {rates[-1]: " (the highest)", rates[0]: " (the lowest)"}
            name = f"{rate:g}{ends.get(rate, '') if len(rates) > 1 else ''}"
            columns = {f"best rate of {len(rates)}": name, "held-out accuracy": float(means[rate])}
            best[alike] = alike.replace(learning_rate=rate), columns
    return best


def at_best_rates(
    table: ModuleType, name: str, recipes: list[RunConfig], runs: Frame, seeds: tuple[int, ...]
) -> tuple[list[RunConfig], Best]:
    """The recipes at the best of their rates; seeds that are to choose keep every rate.

    Args:
      name: the table's.
      runs: all finished runs.

    Raises:
      ValueError: for seeds that chose, or a recipe without runs at every one of its rates.
    """
    chooser, choosing = table.CHOOSE
    if chooser == name and {*seeds} <= {*choosing}:
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
        if len(same) > 1 and each not in best:
            raise ValueError(
                f"{each.model.method} ({each.model.backbone}) on {each.data.dataset} has not a "
                f"held-out accuracy at each of {len(same)} learning rates; first train "
                f"--table={chooser} --seeds={as_flag(choosing)} with the same flags"
            )
    return [best[each][0] if each in best else same[0] for each, same in alike.items()], best
