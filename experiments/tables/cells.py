"""The paper's tables as sets of runs: which runs fill which cell, beside which of its figures."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import interflow_jax as ij
from experiments.cli.configuration import Configuration
from experiments.sweep.planning import Planned, plan
from experiments.tables import paper, presets
from interflow_jax.backbones import Downsample

DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "kmnist", "fashion_mnist")
PAPER_DEPTH = 13  # of all tables but I and VI
BASELINE_DEPTH = 60  # of Table VI: the depth at which the paper's plain network has failed

CLAIMS = (
    *(("S1", "S0"), ("S2", "S0"), ("S6", "S5"), ("S7", "S5")),  # learned weights over fixed ones
    *(("S2", "S1"), ("S4", "S3"), ("S7", "S6"), ("S9", "S8")),  # given initial weights over random
    *(("S1", "Aux"), ("S1", "DSN")),  # fusion over losses of the branches' own
)
"""Pairs of methods of which the paper says that the first is ahead (IV-D, II-A)."""


class Table(NamedTuple):
    """What a table's runs are by default.

    Attributes:
      title: of our report.
      datasets, methods, depths, downsamples, fcs, lengths: every combination is a cell; lengths
        multiply the epochs.
      seeds: runs of a cell, from seed 0 on.
      epochs: in place of the preset's.
    """

    title: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    depths: tuple[int, ...]
    seeds: int
    downsamples: tuple[Downsample, ...] = ("first",)
    fcs: tuple[str, ...] = ("shared",)
    lengths: tuple[int, ...] = (1,)
    epochs: int | None = None


TABLES: dict[str, Table] = {
    "1": Table(
        "Table I: accuracy by depth, without Interflow",
        ("cifar10",),
        ("Normal",),
        tuple(range(4, 14)),
        3,
        ("first", "last"),
    ),
    "3": Table(
        "Table III: accuracy of the methods, and of two baselines",
        DATASETS,
        (*ij.METHODS, *ij.BASELINES),
        (PAPER_DEPTH,),
        5,
    ),
    "4": Table(
        "Table IV and Figure 4: S1 time and again", ("cifar10",), ("S1",), (PAPER_DEPTH,), 30
    ),
    "5": Table("Table V: S3's mean weights", ("cifar10",), ("S3",), (PAPER_DEPTH,), 10),
    "6": Table(
        "Table VI: extremely deep networks",
        ("cifar10",),
        ("Normal", "S1", "Aux", "DSN"),
        tuple(range(40, 101, 10)),
        3,
    ),
    "7": Table("Table VII: S3 ten times", ("cifar10",), ("S3",), (PAPER_DEPTH,), 10),
    "branches": Table(
        "Not in the paper: branches alone, and each with a fully connected layer of its own",
        ("cifar10", "fashion_mnist"),
        ("S1", "S3"),
        (PAPER_DEPTH,),
        5,
        fcs=("shared", "separate"),
    ),
    "longer": Table(
        "Not in the paper: extremely deep networks, trained longer",
        ("fashion_mnist",),
        ("Normal", "S1"),
        (BASELINE_DEPTH,),
        5,
        lengths=(1, 4),
    ),
    "weights": Table(
        "Not in the paper: an extremely deep network's weights, trained for the paper's 40 epochs",
        ("fashion_mnist",),
        ("S1",),
        (BASELINE_DEPTH,),
        3,
        epochs=40,
    ),
}


DEEP = ("6", "longer", "weights")
"""Tables of extremely deep networks, whose reports have every run's weights."""


def stem(number: str) -> str:
    """The name of a table's files, without their ending."""
    return f"table{number}" if number.isdigit() else number


class Cell(NamedTuple):
    """A figure of a table, and the runs behind it.

    Attributes:
      section: the rows' heading: dataset, and what else tells cells apart, as depth or epochs.
      row: the row's name.
      flags: of every run but for the seed.
      seeds: of the runs.
      paper: the paper's accuracy in percent, if it has this cell.
      paper_dataset: that it is of; Table VI's figures are of CIFAR-10, beside whatever ours are.
    """

    section: str
    row: str
    flags: Configuration
    seeds: tuple[int, ...]
    paper: float | None
    paper_dataset: str

    def runs(self, folder: Path) -> list[Planned]:
        """The cell's runs, by seed."""
        return [plan(replace(self.flags, seed=seed), folder) for seed in self.seeds]


class Choice(NamedTuple):
    """What the command line narrows a table to; None for the table's own."""

    preset: str
    datasets: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    depths: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    overrides: dict | None = None


def cells(number: str, choice: Choice) -> list[Cell]:
    """All cells of a table, in the order in which they are run and printed."""
    table = TABLES[number]
    overrides = choice.overrides or {}
    downsamples = (overrides["downsample"],) if "downsample" in overrides else table.downsamples
    fcs = (overrides["fc"],) if "fc" in overrides else table.fcs
    made = []
    for dataset, depth, length, method, downsample, fc in itertools.product(
        choice.datasets or table.datasets,
        sorted(choice.depths or table.depths),
        table.lengths,
        choice.methods or table.methods,
        downsamples,
        fcs,
    ):
        if _only_at_one_depth(number, method, choice) and depth != BASELINE_DEPTH:
            continue
        values = {
            **presets.flags(choice.preset, dataset),
            **({"epochs": table.epochs} if table.epochs else {}),
            "dataset": dataset,
            "method": method,
            "depth": depth,
            **overrides,
            "downsample": downsample,
            "fc": fc,
        }
        flags = Configuration(**values)
        if length > 1:
            flags = replace(flags, epochs=flags.resolved_epochs() * length)
        section, row = _place(number, flags)
        seeds = choice.seeds or tuple(range(table.seeds))
        printed = "cifar10" if number == "6" else dataset
        made.append(Cell(section, row, flags, seeds, _printed(number, flags), printed))
    return made


def _only_at_one_depth(number: str, method: str, choice: Choice) -> bool:
    """Whether a baseline of Table VI was not asked for: it then stands at one depth only."""
    return number == "6" and method in ij.BASELINES and not choice.methods


def _place(number: str, flags: Configuration) -> tuple[str, str]:
    if number == "1":
        method = "" if flags.method == "Normal" else f", {flags.method}"
        section = f"{flags.dataset}, downsample={flags.downsample}{method}"
        return section, f"depth {flags.depth}"
    of_ours = " (not the paper's)" if flags.method in ij.BASELINES else ""
    if number in DEEP:
        named = "Interflow (S1)" if flags.method == "S1" else flags.method + of_ours
        section = f"{flags.dataset}, depth {flags.depth}"
        if number != "6":
            epochs = flags.resolved_epochs()
            section += f", {epochs} epoch{'' if epochs == 1 else 's'}"
        return section, named
    depth = "" if flags.depth == PAPER_DEPTH else f", depth {flags.depth}"
    if number == "branches":
        return f"{flags.dataset}{depth}, {flags.method}", flags.fc
    return f"{flags.dataset}{depth}", flags.method + of_ours


def _printed(number: str, flags: Configuration) -> float | None:
    """The paper's accuracy; its Tables I and IV to VII are of CIFAR-10."""
    method, dataset, depth = flags.method, flags.dataset, str(flags.depth)
    if number == "6":
        return paper.value("6", depth, "Interflow" if method == "S1" else method)
    if number == "1" and (dataset, method) == ("cifar10", "Normal"):
        return paper.value("1", depth, "accuracy")
    if flags.depth != PAPER_DEPTH:
        return None
    if number == "3":
        return paper.value("3", method, dataset)
    if dataset != "cifar10":
        return None
    if (number, method) == ("4", "S1"):
        return paper.value("4", "mean", "accuracy")
    if number in ("5", "7") and method == "S3":
        return paper.value("7", "mean", "accuracy")
    return None


def is_reference(cell: Cell) -> bool:
    """Whether the other rows of the cell's section are compared with it."""
    return cell.flags.method == "Normal" or cell.row == "shared"


def sections(made: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells by section, in order."""
    by_section: dict[str, list[Cell]] = {}
    for cell in made:
        by_section.setdefault(cell.section, []).append(cell)
    return by_section
