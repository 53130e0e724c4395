"""Not in the paper: accuracy within a budget of operations, by way of training and of fusing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import interflow_jax as ij
from experiments.cli.configuration import Configuration
from experiments.runs import policy
from experiments.runs.exits import OWN
from experiments.sweep.planning import Planned
from experiments.sweep.record import EXITS, Record
from experiments.tables import rates, statistics
from experiments.tables.frame import Cell, Frame, Results
from experiments.tables.table import Choice, Detail, Picture, Table, words

CHOOSES = (0,)
"""The seed whose runs choose the learning rates, on held-out examples."""

_SEVEN = (2, 4, 6, 7, 9, 10, 13)  # exits of VGG-16 in Kaya et al. (2019) and Wolczyk et al. (2021)
_WAYS = (
    *(("Normal", None, 0.0, None, depth) for depth in (13, 11, 9, 7)),
    *(("S1", None, 0.0, None, 13), ("S1", None, 1.0, None, 13), ("DSN", None, 0.0, None, 13)),
)
_OF_SEVEN = (
    *(("S1", None, 0.0, _SEVEN, 13), ("S1", None, 1.0, _SEVEN, 13), ("DSN", None, 0.0, _SEVEN, 13)),
    ("S1", "geometric", 0.0, _SEVEN, 13),
)
_RATES = (1e-2, 3e-2)
_BELOW_NETWORKS = 12  # points of accuracy that the picture shows
_RATE_OF_SEVEN = 3e-2  # on CIFAR-10 the best with four branches, for every way of training


class _Way(NamedTuple):
    """Runs of one configuration whose exits are measured."""

    cell: Cell
    runs: Frame

    @property
    def is_branched(self) -> bool:
        return len(self.runs["branches"].iloc[0]) > 1

    @property
    def fusions(self) -> list[str]:
        """From best to worst on held-out examples, by the mean over cuts and seeds."""
        names = self.runs[EXITS].iloc[0]["fusions"]
        means = {name: self.of(name, "held_out_accuracy").mean() for name in names}
        return sorted(names, key=means.__getitem__, reverse=True)

    @property
    def fusion(self) -> str:
        return self.fusions[0]

    @property
    def fitted(self) -> str:
        """The best of the fitted fusions."""
        return next(name for name in self.fusions if name != OWN)

    def of(self, fusion: str, figure: str) -> pd.Series:
        """A figure of a fusion, by seed."""
        return self.runs[EXITS].map(lambda exits: exits["fusions"][fusion][figure])

    def by_branch(self, fusion: str, figure: str) -> pd.DataFrame:
        """A figure of every branch or cut under a fusion, one row per seed."""
        figures = self.of(fusion, figure)
        return pd.DataFrame(figures.tolist(), index=figures.index)

    def at(self, fusion: str, share: float) -> pd.DataFrame:
        """Accuracy and operations within a budget, by seed; empty below the first exit."""
        number = policy.SHARES.index(share)
        figures = {seed: each[number] for seed, each in self.of(fusion, "budgets").items()}
        known = {seed: each for seed, each in figures.items() if each is not None}
        return pd.DataFrame.from_dict(known, orient="index")

    @property
    def operations(self) -> float:
        return self.runs[EXITS].iloc[0]["operations"][-1]


def measure(planned: Planned) -> None:
    """Adds to a finished run's folder what its exits can do, once, if its checkpoints are there."""
    folder = planned.folder
    if not folder.has_checkpoints() or (folder.path / f"{EXITS}.json").exists():
        return
    print(f"measuring the exits of {planned} ...", flush=True)
    run = ij.load_run(folder.path)
    folder.write_json(f"{EXITS}.json", policy.by_fusion(run, planned.flags.data_dir))


def _at_best_rates(choice: Choice, record: Record, out: Path) -> Choice:
    """With only the seed that chooses, every rate; else each way at the rate chosen for it."""
    if choice.seeds == CHOOSES:
        return choice
    results = Results(TABLE.cells(choice), CHOOSES, record, out)
    advice = f"first train --table=exits --seeds={CHOOSES[0]} with the same flags"
    names = {name for axis in (*TABLE.axes, *choice.axes) for name in axis.split()}
    return rates.at_best_rates(choice, results, tuple(sorted(names)), advice)


def _measured(results: Results) -> Iterator[tuple[str, list[_Way], list[_Way]]]:
    """Per section, the ways with branches, and the networks of one depth."""
    sections: dict[str, list[_Way]] = {}
    for cell, runs in results.with_runs():
        runs = runs[runs[EXITS].notna()]
        if len(runs):
            sections.setdefault(cell.section, []).append(_Way(cell, runs))
    for section, ways in sections.items():
        branched = [way for way in ways if way.is_branched]
        yield section, branched, [way for way in ways if not way.is_branched]


def _rates_of(flags: Configuration) -> tuple[float, ...]:
    return _RATES if flags.taps is None else ()


def _details(results: Results) -> Iterator[Detail]:
    names = tuple(name for name in TABLE.rows if name != "learning_rate")
    yield from rates.how_chosen(results, _rates_of, CHOOSES, names)
    for section, ways, networks in _measured(results):
        yield _budgets(section, ways)
        if networks:
            yield _networks(section, networks)
            yield _less_networks(section, ways, networks)
        yield _branches(section, ways)
        yield _weights(section, ways)


def _share(share: float) -> str:
    return f"{share:.0%} of operations"


def _budgets(section: str, ways: list[_Way]) -> Detail:
    rows = [
        {
            "row": f"{way.cell.row}: {_in_words(fusion)}",
            "held-out accuracy": statistics.spread(way.of(fusion, "held_out_accuracy")),
            **{
                _share(share): statistics.spread(figures["accuracy"]) if len(figures) else None
                for share in policy.SHARES
                for figures in [way.at(fusion, share)]
            },
        }
        for way in ways
        for fusion in way.fusions
    ]
    note = "Test accuracy of early exits whose mean image takes that share of the network's own "
    note += "operations; thresholds, temperatures and fitted fusions are of held-out training "
    note += "examples. The held-out accuracy is the mean over cuts."
    return Detail("budgets", f"{section}: accuracy within a budget", rows, note)


def _in_words(fusion: str) -> str:
    return "its own fusion" if fusion == OWN else f"{fusion} fitted"


def _networks(section: str, networks: list[_Way]) -> Detail:
    whole = max(each.operations for each in networks)
    rows = [
        {
            "row": each.cell.row,
            "operations (10^6)": each.operations / 1e6,
            "of the deepest's": f"{each.operations / whole:.0%}",
            "accuracy": statistics.spread(each.runs["test_accuracy"]),
        }
        for each in networks
    ]
    return Detail("networks", f"{section}: networks trained for one depth", rows)


def _less_networks(section: str, ways: list[_Way], networks: list[_Way]) -> Detail:
    rows = []
    for way in ways:
        row: dict[str, Any] = {"row": way.cell.row, "fusion": _in_words(way.fusion)}
        for share in policy.SHARES:
            figures = way.at(way.fusion, share)
            row[_share(share)] = None
            if len(figures):
                static = _as_large(networks, figures["operations"])
                row[_share(share)] = statistics.difference(figures["accuracy"], static)
        rows.append(row)
    note = "In points, of paired seeds; on the line between the two networks of one depth that "
    note += "take the next fewer and the next more operations. Each way has the fusion of the best "
    note += "held-out accuracy."
    title = f"{section}: early exits less networks trained for one depth, at equal operations"
    return Detail("less networks", title, rows, note)


def _as_large(networks: list[_Way], operations: pd.Series) -> pd.Series:
    """The accuracy that networks of one depth would have at so many operations, by seed."""
    by_size = sorted(networks, key=lambda each: each.operations)
    sizes = [each.operations for each in by_size]
    figures = pd.concat([each.runs["test_accuracy"] for each in by_size], axis=1).dropna()
    return pd.Series(
        {
            seed: np.interp(operations[seed], sizes, accuracies, left=np.nan)
            for seed, accuracies in zip(figures.index, figures.to_numpy(float), strict=True)
            if seed in operations
        },
        dtype=float,
    )


def _branches(section: str, ways: list[_Way]) -> Detail:
    rows = []
    for way in ways:
        weights = np.stack(way.runs["weights"].map(_sizes).tolist())
        own, refit = (way.by_branch(fusion, "cuts") for fusion in (OWN, way.fitted))
        left_out, fused = way.by_branch(OWN, "left_out"), own.iloc[:, -1]
        for number, after in enumerate(way.runs["branches"].iloc[0]):
            costs = {
                "leaving it out costs": left_out[number],
                "cutting there costs": fused - own[number],
                "with a fitted fusion": fused - refit[number],
            }
            rows.append(
                {
                    "row": f"{way.cell.row}: after {after}",
                    "share of weights": f"{weights[:, number].mean():.0%}",
                    **{name: statistics.spread(figures) for name, figures in costs.items()},
                }
            )
    note = "Points of test accuracy. Shares are of the weights' absolute values; the fitted fusion "
    note += "is the best on held-out examples."
    return Detail("branches", f"{section}: what each depth is worth", rows, note)


def _weights(section: str, ways: list[_Way]) -> Detail:
    rows = []
    for way in ways:
        method = (ij.METHODS | ij.BASELINES)[way.cell.flags.method]
        if (way.cell.flags.fusion or method.fusion) == "fixed":
            continue
        sizes = pd.DataFrame(way.runs["weights"].map(_sizes).tolist(), way.runs.index)
        ranks = sizes.corrwith(way.by_branch(OWN, "left_out"), axis=1, method="spearman")
        rows.append({"row": way.cell.row, "rank correlation": statistics.spread(ranks.dropna())})
    note = "Spearman's rank correlation, over a run's branches, of the weight's absolute value and "
    note += "of what leaving the branch out costs: 1 where the weights tell the redundant depths."
    title = f"{section}: do the learned weights tell which depth is redundant?"
    return Detail("weights", title, rows, note)


def _sizes(weights: list) -> np.ndarray:
    """The branches' shares of the absolute weights, averaged over any classes."""
    sizes = np.abs(np.array(weights, float)).reshape(len(weights), -1).mean(axis=1)
    return sizes / sizes.sum()


def _pictures(results: Results) -> Iterator[Picture]:
    sections = list(_measured(results))
    if not sections:
        return
    figure, panels = plt.subplots(
        *(1, len(sections)), figsize=(7.5 * len(sections), 6), layout="constrained", squeeze=False
    )
    for axes, (section, ways, networks) in zip(panels[0], sections, strict=True):
        lowest = 100.0 if networks else 0.0
        for way in ways:
            curves = way.of(way.fusion, "curve")
            points = np.array([[[*point.values()] for point in curve] for curve in curves])
            operations, accuracy = points.mean(axis=0).T
            name = words(way.cell.flags, [each for each in TABLE.rows if each != "learning_rate"])
            label = f"{name}: {_in_words(way.fusion)}"
            axes.plot(operations / 1e6, accuracy, label=label)
        label = "trained for one depth"
        for each in networks:
            place = each.operations / 1e6, each.runs["test_accuracy"].mean()
            deviation = each.runs["test_accuracy"].std()  # NaN for a single run
            axes.errorbar(*place, deviation, fmt="k*", markersize=10, label=label)
            axes.annotate(str(each.cell.flags.depth), place, (6, 6), textcoords="offset points")
            label = None
            lowest = min(lowest, place[1] - _BELOW_NETWORKS)
        axes.set(title=section, ylabel="test accuracy (%)", ylim=(lowest, None))
        axes.set_xlabel("mean operations per image (millions)")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    shows = "Test accuracy by mean operations per image, early exits of several ways of training, "
    shows += "beside networks trained for one depth (stars, with their number of convolutions)"
    yield "exits", f"{shows}; means over seeds", figure


TABLE = Table(
    name="exits",
    title="Not in the paper: early exits, by the way of training and fusing",
    seeds=3,
    axes={
        "dataset": ("cifar10",),
        "method fusion auxiliary_mean taps depth learning_rate": (
            *((*way, rate) for way in _WAYS for rate in _RATES),
            *((*way, _RATE_OF_SEVEN) for way in _OF_SEVEN),
        ),
    },
    rows=("method", "fusion", "auxiliary_mean", "taps", "learning_rate"),
    decides=("method", "depth", "learning_rate"),
    reference=("Normal",),
    note="Each way is trained at the learning rate that did best on held-out examples with seed 0, "
    f"those with seven branches at {_RATE_OF_SEVEN:g}, the best with four on CIFAR-10.",
    holds_out=True,
    narrow=_at_best_rates,
    measure=measure,
    details=_details,
    pictures=_pictures,
)
