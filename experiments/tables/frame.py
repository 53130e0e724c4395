"""The runs behind a table as one tidy frame, and what is compared in it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.cli.configuration import Configuration
from experiments.sweep.planning import Planned, plan
from experiments.sweep.record import Record
from experiments.tables import statistics

RESULT = (
    *("run", "test_accuracy", "branch_accuracy", "branches", "weights", "history"),
    *("train_seconds", "device", "versions"),
)
"""Columns of runs.jsonl that a table needs, beside the configuration's."""


class Cell(NamedTuple):
    """One figure of a table: the runs of one configuration.

    Attributes:
      flags: of every run but for the seed.
      section, row: where it is printed, in words.
      paper: the paper's accuracy in percent, if it has this cell.
      reference: the configuration that it is compared with, if any.
    """

    flags: Configuration
    section: str
    row: str
    paper: float | None
    reference: Configuration | None


def columns(flags: Configuration) -> dict[str, Any]:
    """What runs of one configuration have in common, as columns of the frame."""
    return {name: value for name, value in flags.identity(0).items() if name != "seed"}


def planned(cells: list[Cell], seeds: tuple[int, ...], out: Path) -> list[Planned]:
    """The runs of cells, by cell and seed."""
    return [plan(replace(cell.flags, seed=seed), out / "runs") for cell in cells for seed in seeds]


class Results:
    """The finished runs of a table.

    Attributes:
      cells: in printed order.
      seeds: asked for.
      runs: one row per finished run: `section` and `row` of its cell, its configuration, and
        `RESULT`.
    """

    def __init__(self, cells: list[Cell], seeds: tuple[int, ...], record: Record, out: Path):
        self.cells, self.seeds, self._record, self._out = cells, seeds, record, out
        self.runs = _frame(
            [
                {**line, "section": cell.section, "row": cell.row}
                for cell in cells
                for line in self._lines(cell.flags)
            ]
        )

    def _lines(self, flags: Configuration) -> list[dict[str, Any]]:
        lines = []
        for seed in self.seeds:
            run = plan(replace(flags, seed=seed), self._out / "runs")
            result = self._record.result(run)
            if result is None:
                continue
            missing = [column for column in RESULT if column not in result]
            if missing:
                raise ValueError(
                    f"{run.name} in {self._out} has no {missing[0]}: it is of another version; "
                    "delete its folder and its line in runs.jsonl, and the run is made again"
                )
            lines.append(flags.identity(seed) | {column: result[column] for column in RESULT})
        return lines

    def of(self, flags: Configuration) -> pd.DataFrame:
        """The finished runs of a configuration, by seed, be it the table's or another's."""
        return _frame(self._lines(flags)).set_index("seed", drop=False)

    def accuracy(self, flags: Configuration) -> pd.Series:
        """Test accuracy of a configuration in percent, by seed."""
        return self.of(flags)["test_accuracy"].astype(float)

    def difference(
        self, flags: Configuration, reference: Configuration | None
    ) -> statistics.Difference | None:
        """How far a configuration is ahead of another, in points; None without a common seed."""
        if reference is None:
            return None
        return statistics.difference(self.accuracy(flags), self.accuracy(reference))

    def with_runs(self) -> Iterator[tuple[Cell, pd.DataFrame]]:
        """The cells that have finished runs, and those."""
        for cell in self.cells:
            runs = self.of(cell.flags)
            if len(runs):
                yield cell, runs

    def history(self) -> pd.DataFrame:
        """One row per run and epoch: the run's columns, and those of its metrics.csv."""
        runs = self.runs.drop(columns="test_accuracy").to_dict("records")
        return pd.DataFrame([run | epoch for run in runs for epoch in run["history"]])

    def branches(self) -> pd.DataFrame:
        """One row per run and branch: `branch`, counted from 1, `after`, `alone` and `weight`."""
        names = {"branches": "after", "branch_accuracy": "alone", "weights": "weight"}
        rows = self.runs.explode(list(names)).rename(columns=names)
        rows["branch"] = rows.groupby("run").cumcount() + 1
        return rows.astype({"alone": float})


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Without a row as with some, of the same columns."""
    return pd.DataFrame(rows, columns=["section", "row", *Configuration().identity(0), *RESULT])
