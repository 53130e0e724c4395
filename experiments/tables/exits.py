"""Not in the paper: accuracy within a budget of operations, by way of training and of fusing."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from experiments.sweep.record import EXITS
from experiments.tables import pictures, plan
from experiments.tables.compare import compare, labelled
from experiments.tables.presets import grid
from experiments.tables.report import Picture, Section
from experiments.tables.statistics import Family, spread
from interflow_jax.cli import depths
from interflow_jax.cli.depths import OWN, SHARES
from interflow_jax.methods import look_up

TITLE = "Not in the paper: early exits, by the way of training and fusing"
SEEDS = (0, 1, 2)
DATASETS = ("cifar10",)
HOLDS_OUT = True
MEASURED = EXITS
CHOOSE = "exits", (0,)

_SEVEN = (2, 4, 6, 7, 9, 10, 13)  # exits of VGG-16 in Kaya et al. (2019) and Wolczyk et al. (2021)
_BEST_RATE = 3e-2  # on CIFAR-10 with four branches, for every way of training
_NARROWER = 0.75  # of the width, as many operations as fewer layers have
_DISTILLATION = 0.5  # Dynamic Perceiver's
NOTE = f"""\
Networks of 7 to 13 layers, S1 and DSN with four branches are trained at the rate that did best on
held-out examples with seed 0, all others at {_BEST_RATE:g}, the best of those on CIFAR-10."""

_ROWS = ("method", "fusion", "auxiliary_mean", "distillation", "taps", "width")
_SHARES = [f"{share:.0%} of operations" for share in SHARES]
_BELOW_NETWORKS = 12  # points of accuracy that the picture shows


def recipes(base):
    chosen = [
        *grid(base, method=("Normal",), depth=(13, 11, 9, 7)),
        base.replace(method="S1"),
        base.replace(method="S1", auxiliary_mean=1.0),
        base.replace(method="DSN"),
    ]
    at_best = base.replace(learning_rate=_BEST_RATE)
    narrower = at_best.replace(width=_NARROWER * base.model.width)
    others = [
        at_best.replace(method="Concat", auxiliary_mean=1.0),
        at_best.replace(method="S1", auxiliary_mean=1.0, distillation=_DISTILLATION),
        at_best.replace(method="DSN", distillation=_DISTILLATION),
    ]
    seven = [*chosen[4:], base.replace(method="S1", fusion="geometric"), *others]
    return [
        *(each for way in chosen for each in grid(way, learning_rate=(1e-2, _BEST_RATE))),
        at_best.replace(method="Normal", depth=5),
        *grid(narrower, method=("Normal",), depth=(13, 11, 9, 7, 5)),
        *others,
        *(way.replace(taps=_SEVEN, learning_rate=_BEST_RATE) for way in seven),
    ]


def measure(run, dataset):
    """What a finished run's exits can do."""
    measured, fusions = depths.Depths(run), {}
    if len(run.labels) > 1:
        measured.predict(dataset, depths.HELD_OUT)
        fusions = measured.by_fusion()
    return {"operations": measured.operations, "fusions": fusions}


def report(runs):
    yield from compare(runs, _ROWS)
    measured = labelled(runs, _ROWS).dropna(subset=[EXITS])
    measured = measured.assign(operations=[each["operations"][-1] for each in measured[EXITS]])
    branched = measured["branches"].str.len() > 1
    sections = list(measured[branched].groupby("section", sort=False))
    for section, inside in sections:
        networks = measured[~branched & (measured["section"] == section)]
        ways = _by_fusion(inside)
        best, own = ways[ways["by"] == ways["best"]], ways[ways["by"] == OWN]
        yield _budgets(section, ways)
        if len(networks):
            yield _to_networks(section, best, networks)
        yield _branches(section, own, ways[ways["by"] == ways["refit"]])
        yield from _weights(section, own)
        yield _picture(pictures.stem("exits", *[section] * (len(sections) > 1)), best, networks)


def _by_fusion(runs):
    """A row per run and fusion `by`, the best first, with its figures.

    `best` is the best fusion of the run's row on held-out examples, by the mean over cuts and
    seeds; `refit` is the best that is fitted.
    """
    ways = pd.DataFrame(
        [
            {**run, "by": name, **figures}
            for run in runs.to_dict("records")
            for name, figures in run[EXITS]["fusions"].items()
        ]
    )
    ways["mean"] = ways.groupby(["row", "by"])["held_out_accuracy"].transform("mean")
    rows = [inside for _, inside in ways.groupby("row", sort=False)]
    ways = pd.concat(row.sort_values("mean", ascending=False, kind="stable") for row in rows)
    for name, among in (("best", ways), ("refit", ways[ways["by"] != OWN])):
        ways[name] = ways["row"].map(among.groupby("row")["by"].first())
    return ways


def _in_words(fusion):
    return "its own fusion" if fusion == OWN else f"{fusion} fitted"


def _budgets(section, ways):
    rows = []
    for (row, by), inside in ways.groupby(["row", "by"], sort=False):
        figures = {"held-out accuracy": spread(inside["held_out_accuracy"])}
        for share, budgets in zip(_SHARES, zip(*inside["budgets"], strict=True), strict=True):
            figures[share] = spread(each["accuracy"] for each in budgets if each)
        rows.append({"row": f"{row}: {_in_words(by)}", **figures})
    note = "Test accuracy of early exits whose mean image takes that share of the network's own "
    note += "operations; thresholds, temperatures and fitted fusions are of held-out training "
    note += "examples. The held-out accuracy is the mean over cuts."
    return Section(f"{section}: accuracy within a budget", rows, "budgets", note)


def _to_networks(section, ways, networks):
    """Early exits minus networks without exits: a family per budget, whose control these are.

    What a way's own mean operations are worth above or below the budget is taken from its
    accuracies first, so that all have one control. What leaving early costs is known of the last
    epoch, and is taken from the mean of the last ten.
    """
    whole, networks = networks["operations"].max(), _worth_training(networks)
    by_row = dict(list(ways.groupby("row", sort=False)))
    rows = {
        row: {"row": row, "fusion": _in_words(inside["by"].iloc[0])}
        for row, inside in by_row.items()
    }
    notes = []
    for number, share in enumerate(_SHARES):
        static = _as_large(networks, SHARES[number] * whole)
        groups: dict[str | None, Any] = {None: static}
        for row, inside in by_row.items():
            late = inside["late_accuracy"] - inside["test_accuracy"]
            groups[row] = [
                each["accuracy"]
                + run_late
                + static.mean()
                - _as_large(networks, each["operations"]).mean()
                for each, run_late in zip(inside["budgets"].str[number], late, strict=True)
                if each
            ]
        family = Family(groups)
        differences = family.to(None)
        notes += [f"{share}: {family}"] if differences else []
        for row, cell in rows.items():
            cell[share] = differences.get(row)
    note = (
        "Mean accuracy of the last ten epochs, minus what leaving early costs after the last one "
    )
    note += "and minus that on the line between the two networks that take the next fewer and the "
    note += "next more operations, of those that are better on held-out examples than all smaller "
    note += "ones. Each way has the fusion of the best held-out accuracy. "
    note += f"{' '.join(notes)} Millions of operations: "
    sizes = networks.groupby("row", sort=False)["operations"].first() / 1e6
    note += ", ".join(f"{row} {size:.2f}" for row, size in sizes.items())
    title = f"{section}: early exits minus the best networks without, at equal operations"
    return Section(title, list(rows.values()), "to_networks", note)


def _worth_training(networks):
    """Those whose mean accuracy on held-out examples is above that of every smaller network."""
    means = networks.groupby("operations")[plan.held_out(networks)].mean()
    better = means.index[means > means.cummax().shift(1, fill_value=0)]
    return networks[networks["operations"].isin(better)]


def _as_large(networks, operations):
    """The accuracies that networks would have at so many operations, one per seed."""
    sizes = networks.pivot_table("late_accuracy", "seed", "operations").dropna()
    return np.array(
        [np.interp(operations, sizes.columns, each, left=np.nan) for each in sizes.to_numpy()]
    )


def _branches(section, own, refit):
    """What every branch and every cut is worth, by the run's own fusion and by a fitted one."""
    lists = {
        "size": own["weights"].map(sizes),
        "fitted": own["run"].map(dict(zip(refit["run"], refit["cuts"], strict=True))),
    }
    long = own.assign(whole=own["cuts"].str[-1], **lists)
    long = long.explode(["branches", "left_out", "cuts", *lists])
    rows = [
        {
            "row": f"{row}: after {after}",
            "share of weights": f"{inside['size'].mean():.0%}",
            "leaving it out costs": spread(inside["left_out"]),
            "cutting there costs": spread(inside["whole"] - inside["cuts"]),
            "with a fitted fusion": spread(inside["whole"] - inside["fitted"]),
        }
        for (row, after), inside in long.groupby(["row", "branches"], sort=False)
    ]
    note = "Points of test accuracy. Shares are of the weights' absolute values; the fitted fusion "
    note += "is the best on held-out examples."
    return Section(f"{section}: what each depth is worth", rows, "branches", note)


def _weights(section, own):
    rows = []
    for row, inside in own.groupby("row", sort=False):
        model = inside["config"].iloc[0].model
        if (model.fusion or look_up(model.method).fusion) != "fixed":
            ranks = spread(inside.apply(rank_correlation, axis=1))
            rows.append({"row": row, "rank correlation": ranks})
    note = "Spearman's rank correlation, over a run's branches, of the weight's absolute value and "
    note += "of what leaving the branch out costs: 1 where the weights tell the redundant depths."
    if rows:
        title = f"{section}: do the learned weights tell which depth is redundant?"
        yield Section(title, rows, "weights", note)


def rank_correlation(run):
    """Of the sizes of a run's weights and what leaving out each branch costs, Spearman's."""
    costs = run[EXITS]["fusions"][OWN]["left_out"]
    return pd.Series(sizes(run["weights"])).corr(pd.Series(costs), "spearman")


def sizes(weights):
    """The branches' shares of the absolute weights, averaged over any classes."""
    sizes = np.abs(np.array(weights, float)).reshape(len(weights), -1).mean(axis=1)
    return sizes / sizes.sum()


def _picture(name, ways, networks):
    """Accuracy by operations of every way, beside networks trained for one depth."""
    figure, axes = plt.subplots(figsize=(7.5, 6), layout="constrained")
    widest = networks["width"].max()
    for row, inside in ways.groupby("row", sort=False):
        curves = [[(each["operations"], each["accuracy"]) for each in of] for of in inside["curve"]]
        operations, accuracy = np.mean(curves, axis=0).T
        count = f"{len(inside)} seed{'s' * (len(inside) > 1)}"
        label = f"{row}: {_in_words(inside['by'].iloc[0])} ({count})"
        axes.plot(operations / 1e6, accuracy, label=label)
    by_size = networks.groupby("operations")
    for operations, inside in by_size:
        accuracies, depth = inside["test_accuracy"], inside["depth"].iloc[0]
        place, full = (operations / 1e6, accuracies.mean()), inside["width"].iloc[0] == widest
        options = {"fmt": "k*", "mfc": "black" if full else "white", "markersize": 10}
        axes.errorbar(*place, accuracies.std(), **options)
        axes.annotate(f"  {depth}", place, va="bottom")
    if len(networks):
        lowest = by_size["test_accuracy"].mean().min()
        axes.set(ylim=(lowest - _BELOW_NETWORKS, None))
    axes.set(xlabel="mean operations per image (millions)", ylabel="test accuracy (%)")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    pictures.entitle(figure, "Early exits", ways)
    shows = "Test accuracy by mean operations per image, early exits of several ways of training, "
    shows += "beside networks without exits (stars, hollow of narrower ones, with their number of "
    shows += "convolutions)"
    return Picture(name, f"{shows}; means over seeds", figure)
