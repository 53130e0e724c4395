"""Table VI, and what it leaves open: extremely deep networks, and their weights by epoch."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt

import interflow_jax as ij
from experiments.cli.configuration import Configuration
from experiments.tables import paper, pictures, statistics
from experiments.tables.frame import Frame, Results
from experiments.tables.methods import claims
from experiments.tables.statistics import Share
from experiments.tables.table import Detail, Picture, Table
from experiments.tables.weights import at_start

BASELINE_DEPTH = 60  # of Table VI: the depth at which the paper's plain network fails
DEEPEST = 100
PAPER_DATASET = "cifar10"  # of Table VI
NETWORK = ("dataset", "layout")
"""What networks of the same depth differ by; a picture has one of each."""


def _paper(flags: Configuration) -> float | None:
    """The paper's Table VI, whose Interflow is S1."""
    method = "Interflow" if flags.method == "S1" else flags.method
    return paper.value("6", str(flags.depth), method)


def _cost_of_depth(results: Results) -> Iterator[Detail]:
    """Every cell minus the shallowest of its kind that has runs."""
    rows = []
    shallowest: dict[Configuration, Configuration] = {}
    for cell, _ in results.with_runs():
        reference = shallowest.setdefault(replace(cell.flags, depth=0), cell.flags)
        difference = results.difference(cell.flags, reference)
        if reference != cell.flags and difference is not None:
            row = f"{cell.section}, {cell.row}"
            rows.append({"row": row, "less the shallowest of the method": difference})
    yield Detail("cost_of_depth", "What depth costs", rows, "Paired seeds.")


def _weights(results: Results) -> Iterator[Detail]:
    """The weights of every run of S1, at the start and as learned, beside the paper's."""
    for cell, runs in results.with_runs():
        if cell.flags.method != "S1":
            continue
        start = at_start(
            cell.flags, 2, runs["seed"].tolist(), tuple(runs["image_shape"].iloc[0])
        ).tolist()
        branches = [str(place) for place in range(1, len(start[0]) + 1)]
        printed = paper.table("6")["cells"].get(str(cell.flags.depth), {})
        weights = {}
        if printed.get("branches") == len(branches):
            weights[f"paper ({PAPER_DATASET})"] = [printed[branch] for branch in branches]
        for seed, drawn, learned in zip(runs["seed"], start, runs["weights"], strict=True):
            weights |= {f"seed {seed}, at the start": drawn, f"seed {seed}, learned": learned}
        rows = [
            {"branch": name} | dict(zip(branches, row, strict=True))
            for name, row in weights.items()
        ]
        title = f"Weights of S1, shallow to deep: {cell.section}"
        yield Detail("weights", title, rows, form="+z.2f")


def _begun(results: Results) -> Iterator[Detail]:
    """How many runs of every cell have begun to learn, and how accurate those are."""
    rows = []
    for cell, runs in results.with_runs():
        begun = runs[statistics.learned(runs)]
        row = {"row": f"{cell.section}, {cell.row}", "runs": Share(len(begun), len(runs))}
        rows.append(row | {"accuracy of those": statistics.spread(begun["test_accuracy"])})
    note = "With the exact 95 % interval of their share (Clopper and Pearson)."
    yield Detail("begun", "Runs that have begun to learn", rows, note)


def _longer_details(results: Results) -> Iterator[Detail]:
    yield from _begun(results)
    yield from _weights(results)


def _table_6_details(results: Results) -> Iterator[Detail]:
    yield from _begun(results)
    yield from claims(results)
    yield from _cost_of_depth(results)
    yield from _weights(results)


def _table_6_pictures(results: Results) -> Iterator[Picture]:
    values = {name: {vars(cell.flags)[name] for cell in results.cells} for name in NETWORK}
    varied = [name for name in NETWORK if len(values[name]) > 1]
    panels = varied or ["dataset"]
    of_paper = f"the paper's on {PAPER_DATASET}"
    yield "table6", *pictures.by_depth(results, "row", *panels, printed_of=of_paper)
    branches = results.branches()
    by_network = branches[branches["method"] == "S1"].groupby(panels, sort=False)
    for names, of_s1 in by_network:
        size = (8.5, 2 * (1.1 + 0.35 * of_s1["depth"].nunique()))  # inches
        chart, every = plt.subplots(2, 1, figsize=size, layout="constrained")
        by_place = of_s1.assign(weight=of_s1["weight"].abs()).groupby(["depth", "branch"])
        kinds = {"weight": "absolute weight", "alone": "accuracy of the branch alone (%)"}
        for axes, (column, title) in zip(every, kinds.items(), strict=True):
            pictures.heatmap(axes, by_place[column].mean().unstack().astype(float))
            axes.set(title=f"{title}, mean over seeds", xlabel="branch, shallow to deep")
        stem = pictures.stem("table6-branches", *(names if varied else ()))
        shows = "Two heat maps by depth and branch, shallow to deep: the absolute weight, and the "
        yield stem, f"{shows}test accuracy of the branch alone", chart
    history = results.history()
    ends = history[history["depth"].isin((BASELINE_DEPTH, DEEPEST))]
    yield from _learning_curves("table6-learning", ends)


def _learning_curves(stem: str, history: Frame) -> Iterator[Picture]:
    if history.empty:
        return
    per_run = {"units": "run", "estimator": None, "alpha": 0.7}
    grid = pictures.lines(history, "epoch", "test_accuracy", **per_run)
    shows = f"Test accuracy by epoch, one line per run of {', '.join(history['row'].unique())}; a "
    yield stem, f"{shows}panel each for {' and '.join(history['section'].unique())}", grid.figure


def _by_epoch(name: str, results: Results) -> Iterator[Picture]:
    """Learning curves, and the learned weights of the first run of S1 in every section."""
    history = results.history()
    yield from _learning_curves(name, history)
    history = history[history["method"] == "S1"]
    first = history[history["run"].isin(history.groupby("section")["run"].first())]
    if first.empty:
        return
    taps = {f"weights/{tap}": f"after {tap}" for tap in first["branches"].explode().unique()}
    weights = first.rename(columns=taps).melt(
        ["section", "epoch"], list(taps.values()), "branch", "weight"
    )
    grid = pictures.lines(weights, "epoch", "weight", "branch", palette="viridis")
    shows = "The fusion's weights by epoch in the first run, one line per branch, light the "
    shows += f"deepest; a panel each for {' and '.join(weights['section'].unique())}"
    yield f"{name}-by-epoch", shows, grid.figure


def _axes(*methods: str, **axes: tuple) -> dict[str, tuple]:
    """The axes of the tables that are not in the paper."""
    deep = {"dataset": ("fashion_mnist",), "depth": (BASELINE_DEPTH,), "layout": ("spread",)}
    return {**deep, **axes, "method": methods}


TABLES = (
    Table(
        name="table6",
        title="Table VI: extremely deep networks (S1 is the paper's Interflow)",
        seeds=3,
        may_fail=True,
        axes={
            "dataset": (PAPER_DATASET,),
            "depth": tuple(range(40, DEEPEST + 1, 10)),
            "layout": ("spread",),
            "method": ("Normal", "S1", "Aux", "DSN"),
        },
        sections=("dataset", "depth"),
        paper=_paper,
        paper_dataset=PAPER_DATASET,
        omit=lambda flags: flags.method in ij.BASELINES and flags.depth != BASELINE_DEPTH,
        details=_table_6_details,
        pictures=_table_6_pictures,
    ),
    Table(
        name="longer",
        title="Not in the paper: extremely deep networks, trained longer",
        seeds=5,
        may_fail=True,
        axes=_axes("Normal", "S1", length=(1, 4)),
        sections=("dataset", "depth", "epochs"),
        details=_longer_details,
        pictures=partial(_by_epoch, "longer"),
    ),
    Table(
        name="weights",
        title="Not in the paper: an extremely deep network's weights after the paper's 40 epochs",
        seeds=3,
        may_fail=True,
        axes=_axes("S1", epochs=(40,)),
        sections=("dataset", "depth", "epochs"),
        details=_weights,
        pictures=partial(_by_epoch, "weights"),
    ),
)
