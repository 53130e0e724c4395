"""Configurations at the learning rate that is best for each on held-out training examples.

A table with `CHOOSE`, the name of a table and seeds, has its `recipes` at one rate each, the best
by that table's runs of these seeds, which test no rate that they chose unless `SEEDS` has them.
"""

from types import ModuleType
from typing import Any, NamedTuple

from experiments.tables.runs import Frame, match
from interflow_jax.cli.config import RunConfig, as_flag


class Best(NamedTuple):
    """The best rate of a configuration, of those that it was tried at."""

    config: RunConfig  # at that rate
    held_out: float  # accuracy in percent, of the last epoch, mean over seeds
    tried: tuple[float, ...]  # rates that have a run
    rates: int  # to be tried

    def columns(self) -> dict[str, Any]:
        """How it was chosen; at an end of the rates tried, a better one may lie beyond."""
        rate = self.config.training.learning_rate
        ends = {max(self.tried): " (the highest)", min(self.tried): " (the lowest)"}
        best = f"{rate:g}{ends.get(rate, '') if len(self.tried) > 1 else ''}"
        return {f"best rate of {self.rates}": best, "held-out accuracy": self.held_out}


def kind(config: RunConfig) -> RunConfig:
    """What runs that differ only by seed and learning rate have in common."""
    return config.replace(seed=0, learning_rate=0.0)


def best_rates(runs: Frame) -> dict[RunConfig, Best]:
    """By `kind`, the best rate among a matched frame's runs; none where no rate has a run."""
    best = {}
    for alike, inside in runs.assign(kind=runs["config"].map(kind)).groupby("kind", sort=False):
        means = inside.groupby("learning_rate")["validation_accuracy"].mean().dropna()
        if len(means):
            rate, rates = float(means.idxmax()), inside["learning_rate"].nunique()
            config = alike.replace(learning_rate=rate)
            best[alike] = Best(config, float(means[rate]), tuple(means.index), rates)
    return best


def at_best_rates(
    table: ModuleType, name: str, recipes: list[RunConfig], runs: Frame, seeds: tuple[int, ...]
) -> tuple[list[RunConfig], dict[RunConfig, Best]]:
    """The recipes at the best of their rates, and by `kind` how each was chosen.

    Seeds that are to choose keep every rate.

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
    several = {each: configs for each, configs in alike.items() if len(configs) > 1}
    tried = [
        config.replace(seed=seed)
        for configs in several.values()
        for config in configs
        for seed in choosing
    ]
    best = best_rates(match(runs, tried)) if tried else {}
    for each in several:
        count = len(best[each].tried) if each in best else 0
        if count < len(several[each]):
            raise ValueError(
                f"{each.model.method} ({each.model.backbone}) on {each.data.dataset} has held-out "
                f"accuracies at {count} of {len(several[each])} learning rates; first train "
                f"--table={chooser} --seeds={as_flag(choosing)} with the same flags"
            )
    return [best[each].config if each in best else alike[each][0] for each in alike], best
