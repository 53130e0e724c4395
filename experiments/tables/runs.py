"""All finished runs as one frame; those of a table are found in it by what they compute."""

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.sweep import record
from interflow_jax.cli.config import RunConfig, recorded, recorded_identity
from interflow_jax.cli.machine import versions_line
from interflow_jax.cli.training import late_epochs

Frame = Any
"""A `pandas.DataFrame`, whose own annotations make every result a union of all types."""

FIELDS = tuple(RunConfig().flat())
"""The columns that say what a run computes."""

OLDER = "older_branch_accuracy"
"""Marks a line whose branches were measured by an older definition; that is not used."""

_NEEDED = ("run", *record.FIGURES)
_AT_THE_END = ("validation_accuracy", "held_out_accuracy", "recalibrated_accuracy")
_ACCURACIES = ("test_accuracy", "late_accuracy", *_AT_THE_END)
_OPTIONAL = (*_AT_THE_END, "history", record.EXITS, record.PROBES, OLDER)
_MEASURED = (*_NEEDED, *_OPTIONAL, "late_accuracy", "machine", "key")


def load(out: Path) -> Frame:
    """A row per run that OUT/runs.jsonl or a folder below OUT/runs has finished.

    Its columns are `FIELDS`, with their defaults where a run is older than the field, and what the
    run measured: `late_accuracy` is the mean test accuracy of its `late_epochs`. Accuracies are in
    percent.
    """
    rows = [_row(line) for line in record.read(out)]
    return pd.DataFrame(rows, columns=[*FIELDS, *_MEASURED]).drop_duplicates("key", keep="last")


def _row(line: dict[str, Any]) -> dict[str, Any]:
    row = {**recorded(line).flat(), **{name: line.get(name) for name in (*_NEEDED, *_OPTIONAL)}}
    late = [epoch["test_accuracy"] for epoch in late_epochs(row["history"] or [])]
    row["late_accuracy"] = float(np.mean(late or row["test_accuracy"]))
    rounded_by = ", ".join(map(str, line.get("software", ()))).split(", ")
    onednn = sorted({name for name in rounded_by if name.startswith("oneDNN")})
    row["machine"] = f"{row['device']}; {', '.join([versions_line(row['versions']), *onednn])}"
    row["branch_accuracy"] = None if row[OLDER] else row["branch_accuracy"]
    return row | {"key": record.key(recorded_identity(line))}


def match(runs: Frame, configs: Iterable[RunConfig]) -> Frame:
    """A row per configuration, in order, with what its run measured; `run` is None without one.

    Beside the columns of `load` there are `config`, and `letter`, which tells the machines of the
    runs apart if there are several.
    """
    rows = [
        {**fields(config), "config": config, "key": record.key(config.identity())}
        for config in configs
    ]
    matched = pd.DataFrame(rows).merge(runs[[*_MEASURED]], on="key", how="left")
    matched = matched.astype(dict.fromkeys(_ACCURACIES, float)).astype({"run": object})
    machines = sorted({*matched["machine"].dropna()})
    letters = dict(zip(machines, string.ascii_letters, strict=False)) if len(machines) > 1 else {}
    return matched.assign(letter=[letters.get(name, "") for name in matched["machine"]])


def fields(config: RunConfig) -> dict[str, Any]:
    """A run's fields as it would record them: with the taps and epochs that it has."""
    return recorded(config.identity()).flat()


def finished(runs: Frame) -> Frame:
    """The rows of a matched frame that have a run."""
    return runs[runs["run"].notna()]


def by_epoch(runs: Frame) -> Frame:
    """A row per run and epoch: the run's columns, and those of its metrics.csv."""
    rows = runs.drop(columns=["test_accuracy", "validation_accuracy"]).to_dict("records")
    # The fields of the run win: its `learning_rate` is not that of the epoch.
    return pd.DataFrame([epoch | row for row in rows for epoch in row["history"] or ()])


def by_branch(runs: Frame) -> Frame:
    """A row per run and branch: `branch`, from 1 on, `after`, `alone` and `weight`."""
    names = {"branches": "after", "branch_accuracy": "alone", "weights": "weight"}
    rows = runs.dropna(subset=["branch_accuracy"]).explode(list(names)).rename(columns=names)
    return rows.assign(branch=rows.groupby("run").cumcount() + 1).astype({"alone": float})
