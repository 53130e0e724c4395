"""Tables II and III: the methods, and how accurate each is on every dataset."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns

import interflow_jax as ij
from experiments.cli.configuration import VGG, Configuration
from experiments.tables import paper, statistics
from experiments.tables.frame import Cell, Frame, Results
from experiments.tables.table import PAPER_DEPTH, Detail, Picture, Table, words

DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "kmnist", "fashion_mnist")

CLAIMS = (
    *(("S1", "S0"), ("S2", "S0"), ("S6", "S5"), ("S7", "S5")),  # learned weights over fixed ones
    *(("S2", "S1"), ("S4", "S3"), ("S7", "S6"), ("S9", "S8")),  # given initial weights over random
    *(("S1", "Aux"), ("S1", "DSN")),  # fusion over the branches' own losses
)
"""Pairs of methods, the first of which is ahead according to the paper (IV-D, II-A)."""


def table_2() -> str:
    """Table II, from the methods as the code has them."""
    lines = [
        "| method | branches after convolutions | fusion | initial weights |",
        "| --- | --- | --- | --- |",
    ]
    for name, method in {**ij.METHODS, **ij.BASELINES}.items():
        start = "Xavier" if method.fusion != "fixed" else "the last branch alone"
        if method.initial_weights is not None:
            start = ", ".join(f"{weight:.3g}" for weight in method.initial_weights)
        if name in ij.BASELINES:
            start += " (a baseline, not the paper's)"
        taps = ", ".join(map(str, method.taps))
        lines.append(f"| {name} | {taps} | {method.fusion} | {start} |")
    return "\n".join(lines)


def paper_accuracy(flags: Configuration) -> float | None:
    """The paper's Table III, which is for its own network with 13 convolutions."""
    if flags.backbone != VGG or flags.depth != PAPER_DEPTH:
        return None
    return paper.value("3", flags.method, flags.dataset)


def claims(results: Results) -> Iterator[Detail]:
    """Differences between methods of the table where the paper says which is ahead."""
    sections: dict[str, dict[str, Cell]] = {}
    for cell in results.cells:
        if not cell.flags.auxiliary_mean:
            sections.setdefault(cell.section, {})[cell.flags.method] = cell
    rows = []
    for section, by_method in sections.items():
        for ahead, behind in (pair for pair in CLAIMS if by_method.keys() >= set(pair)):
            first, second = by_method[ahead], by_method[behind]
            difference = results.difference(first.flags, second.flags)
            pair = f"{section}, {first.row} less {second.row}"
            row = {"row": pair, "difference of paired seeds": difference}
            rows.append(row | {"Welch's": difference and difference.welch})
    yield Detail("claims", "What the paper says is ahead", rows)


def above_normal(name: str, results: Results) -> Iterator[Picture]:
    """Differences from Normal over paired seeds, with their intervals, one panel per section."""
    # Rows that are the same in every section, whatever their learning rates.
    compared = [
        (cell._replace(row=words(cell.flags, ("method",))), cell.reference)
        for cell in results.cells
        if cell.reference
    ]
    apart = [
        (results.of(cell.flags)["test_accuracy"] - results.of(normal)["test_accuracy"])
        .to_frame("points")
        .assign(section=cell.section, row=cell.row)
        for cell, normal in compared
    ]
    frame: Frame = pd.concat(apart).dropna() if apart else pd.DataFrame()
    if frame.empty:
        return
    sections, rows = frame["section"].unique().tolist(), frame["row"].unique().tolist()
    height = 1.6 + 0.25 * len(rows)
    width = 3.5 + 0.08 * max(map(len, rows))  # inches; the rows are named on the left
    grid = sns.catplot(
        **{"data": frame, "kind": "point", "x": "points", "y": "row", "col": "section"},
        **{"col_wrap": min(3, len(sections)), "height": height, "aspect": width / height},
        errorbar=lambda points: statistics.interval(np.asarray(points)),
        linestyle="none",
    )
    shows = f"Accuracy above Normal's in points, by method, a panel each for {', '.join(sections)}"
    shows += "; lines are 95 % confidence intervals"
    diamonds = ""
    for cell, normal in compared:
        printed, of_normal = paper_accuracy(cell.flags), paper_accuracy(normal)
        if printed and of_normal and cell.row in rows and cell.section in sections:
            axes = grid.axes_dict[cell.section]
            axes.plot(printed - of_normal, rows.index(cell.row), "kD", mfc="none")
            diamonds = ", diamonds the paper's"
    grid.set(ylim=(len(rows) - 0.5, -0.5))  # a diamond would end the axis in the middle of a row
    grid.refline(x=0).set_titles("{col_name}").set(xlabel="points above Normal", ylabel="")
    yield name, shows + diamonds, grid.figure


TABLE = Table(
    name="table3",
    title="Table III: accuracy of the methods, and of two baselines",
    seeds=5,
    axes={
        "dataset": DATASETS,
        "depth": (PAPER_DEPTH,),
        "method": (*ij.METHODS, "Aux", "DSN"),
    },
    paper=paper_accuracy,
    details=claims,
    pictures=partial(above_normal, "table3"),
)
