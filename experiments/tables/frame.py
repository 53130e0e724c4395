"""The runs behind a table as one tidy frame, and comparisons within it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.cli.configuration import Configuration
from experiments.sweep.planning import Planned, plan
from experiments.sweep.record import EXITS, Record
from experiments.tables import statistics

RESULT = (
    *("run", "test_accuracy", "branch_accuracy", "branches", "weights", "history"),
    *("train_seconds", "device", "versions", "image_shape", "class_names"),
)
"""Columns of runs.jsonl that a table needs, besides the configuration's."""

VALIDATION = "validation_accuracy"
OF_SOME = (VALIDATION, EXITS)
"""Columns that only some runs have: those with held-out examples, or with measured exits."""

Frame = Any
"""A `pandas.DataFrame`, whose own annotations make every result a union of all types."""


class Cell(NamedTuple):
    """One figure of a table: the runs of one configuration."""

    flags: Configuration  # of every run, except for the seed
    section: str  # where it is printed, in words
    row: str
    paper: float | None  # the paper's accuracy in percent, if it has this cell
    reference: Configuration | None  # what it is compared with
    heading: tuple[str, ...]  # the fields that its section names


def columns(flags: Configuration) -> dict[str, Any]:
    """What runs of one configuration have in common, as columns of the frame."""
    return {name: value for name, value in flags.identity(0).items() if name != "seed"}


def planned(cells: list[Cell], seeds: tuple[int, ...], out: Path) -> list[Planned]:
    """The runs of cells, by cell and seed."""
    return [plan(replace(cell.flags, seed=seed), out / "runs") for cell in cells for seed in seeds]


class Results:
    """The finished runs of a table: `runs` has one row per run.

    Its columns are `section` and `row` of the run's cell, its configuration, and `RESULT`. With
    `may_fail`, a cell in which some runs have begun to learn and others have not is not compared:
    a mean would describe neither.
    """

    def __init__(
        self,
        cells: list[Cell],
        seeds: tuple[int, ...],
        record: Record,
        out: Path,
        may_fail: bool = False,
    ):
        self.cells, self.seeds, self._record, self._out = cells, seeds, record, out
        self._may_fail = may_fail
        frames = [self.of(cell.flags).assign(section=cell.section, row=cell.row) for cell in cells]
        self.runs: Frame = pd.concat(frames, ignore_index=True)

    def others(self, cells: list[Cell], seeds: tuple[int, ...]) -> "Results":
        """The finished runs of other cells and seeds, of the same record."""
        return Results(cells, seeds, self._record, self._out)

    def of(self, flags: Configuration) -> Frame:
        """The finished runs of any configuration, the table's or not, by seed."""
        rows = []
        for seed in self.seeds:
            run = plan(replace(flags, seed=seed), self._out / "runs")
            result = self._record.result(run)
            missing = [column for column in RESULT if result and column not in result]
            if missing:
                raise ValueError(
                    f"{run.name} in {self._out} has no {missing[0]}: it is of another version; "
                    "delete its folder and its line in runs.jsonl, and the run is made again"
                )
            if result:
                measured = {column: result.get(column) for column in (*RESULT, *OF_SOME)}
                rows.append(flags.identity(seed) | measured)
        frame = pd.DataFrame(rows, columns=[*flags.identity(0), *RESULT, *OF_SOME])
        return frame.astype({"test_accuracy": float}).set_index("seed", drop=False)

    def difference(
        self, flags: Configuration, reference: Configuration | None
    ) -> statistics.Difference | None:
        """How far a configuration is ahead of another, in points; None without a common seed."""
        if reference is None or self.is_mixed(flags) or self.is_mixed(reference):
            return None
        both = (self.of(each)["test_accuracy"] for each in (flags, reference))
        return statistics.difference(*both)

    def is_mixed(self, flags: Configuration) -> bool:
        """Whether runs may fail and, of this configuration, only some have begun to learn."""
        return self._may_fail and statistics.learned(self.of(flags)).nunique() > 1

    def with_runs(self) -> Iterator[tuple[Cell, Frame]]:
        """The cells that have finished runs, each with its runs."""
        for cell in self.cells:
            runs = self.of(cell.flags)
            if len(runs):
                yield cell, runs

    def history(self) -> Frame:
        """One row per run and epoch: the run's columns, and those of its metrics.csv."""
        runs = self.runs.drop(columns="test_accuracy").to_dict("records")
        return pd.DataFrame([run | epoch for run in runs for epoch in run["history"]])

    def branches(self) -> Frame:
        """One row per run and branch: `branch`, counted from 1, `after`, `alone` and `weight`."""
        names = {"branches": "after", "branch_accuracy": "alone", "weights": "weight"}
        rows = self.runs.explode(list(names)).rename(columns=names)
        return rows.assign(branch=rows.groupby("run").cumcount() + 1).astype({"alone": float})
