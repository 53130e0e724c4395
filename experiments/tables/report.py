"""A table's report: its figures from the run folders, as JSON, Markdown and pictures."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs.files import write_whole
from experiments.sweep import planning
from experiments.sweep.planning import Planned
from experiments.tables import charts, statistics, weight_report
from experiments.tables.cells import CLAIMS, DEEP, TABLES, Cell, is_reference, sections, stem
from experiments.tables.markdown import markdown
from experiments.tables.protocol import protocol

KEPT = (
    *("method", "dataset", "seed", "depth", "width", "downsample", "epochs", "train_size"),
    *("test_accuracy", "branch_accuracy", "branches", "weights", "train_loss", "test_loss"),
    *("test_examples", "train_seconds", "images_per_second", "parameters", "fingerprint"),
    *("device", "versions", "command"),
)
"""What of a run's result.json goes into the report."""

NORMAL_ELSEWHERE = ("4", "5", "7")
"""Tables of one method alone: Normal's runs are Table III's."""


def gather(number: str, made: list[Cell], runs: Path) -> list[dict[str, Any]]:
    """The figures of every cell from the runs that are finished.

    Returns:
      A dict a cell: section, row, method, dataset, depth, paper (percent) and paper_dataset, seeds
      (asked for), runs (what `KEPT` names, and `finished`, the time, if the run recorded it), mean,
      deviation (over n - 1) and best of their accuracy in percent; difference, in points with its
      interval, and the name of the row that it is to (in Table I the depth before, else a Normal or
      `shared`), None where there is none; and claims, the differences to the methods of its section
      that the paper says it is ahead of.
    """
    gathered = []
    for section in sections(made).values():
        ran = {
            cell.row: [_kept(each) for each in planning.finished(cell.runs(runs))]
            for cell in section
        }
        accuracies = {row: _accuracies(there) for row, there in ran.items()}
        rows = {cell.flags.method: cell.row for cell in section}
        for place, cell in enumerate(section):
            ours = accuracies[cell.row]
            values = list(ours.values())
            to, reference = _compared_with(number, section, place), {}
            if to is not None:
                reference = accuracies[to]
            elif number in NORMAL_ELSEWHERE and not is_reference(cell):
                to = "Normal"
                normal = cell._replace(flags=replace(cell.flags, method=to))
                reference = _accuracies([*map(_kept, planning.finished(normal.runs(runs)))])
            claimed = [
                (rows[behind], statistics.difference(ours, accuracies[rows[behind]]))
                for ahead, behind in CLAIMS
                if ahead == cell.flags.method and behind in rows
            ]
            gathered.append(
                {
                    "section": cell.section,
                    "row": cell.row,
                    "method": cell.flags.method,
                    "dataset": cell.flags.dataset,
                    "depth": cell.flags.depth,
                    "paper": cell.paper,
                    "paper_dataset": cell.paper_dataset,
                    "seeds": list(cell.seeds),
                    "mean": float(np.mean(values)) if values else None,
                    "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "best": max(values, default=None),
                    "difference": _named(to, statistics.difference(ours, reference)),
                    "claims": [_named(behind, found) for behind, found in claimed if found],
                    "runs": ran[cell.row],
                }
            )
    return gathered


def _accuracies(ran: list[dict[str, Any]]) -> dict[int, float]:
    return {run["seed"]: run["test_accuracy"] for run in ran}


def _named(to: str | None, found: statistics.Difference | None) -> dict[str, Any] | None:
    return found and {**found._asdict(), "to": to}


def _compared_with(number: str, section: list[Cell], place: int) -> str | None:
    """The row that a cell's difference is to, if the section has it."""
    if number == "1":  # what the paper says of it is where the accuracy jumps
        return section[place - 1].row if place else None
    references = [cell.row for cell in section if is_reference(cell)]
    return references[0] if references and references[0] != section[place].row else None


def readings(gathered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Table I's two readings against each other: does one jump where the other does not?

    Returns:
      A dict a depth of which both have runs: section (of `first`), row, accuracy (the difference
      of `first` to `last`), and step (the same of what each gains over the row above, or None).
    """
    by_section: dict[str, dict[str, dict[int, float]]] = {}
    for cell in gathered:
        by_section.setdefault(cell["section"], {})[cell["row"]] = _accuracies(cell["runs"])
    found = []
    for section, first in by_section.items():
        last = by_section.get(section.replace("downsample=first", "downsample=last"), {})
        if last is first:
            continue
        rows = list(first)
        for row, above in zip(rows, ["", *rows], strict=False):
            apart = statistics.difference(first[row], last.get(row, {}))
            if apart is None:
                continue
            gains = [_less(of[row], of.get(above, {})) for of in (first, last)]
            step = statistics.difference(*gains)
            found.append(
                {
                    "section": section,
                    "row": row,
                    "accuracy": apart._asdict(),
                    "step": step and step._asdict(),
                }
            )
    return found


def _less(ours: dict[int, float], other: dict[int, float]) -> dict[int, float]:
    return {seed: value - other[seed] for seed, value in ours.items() if seed in other}


def by_depth(gathered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What depth costs in Table VI: every cell less the shallowest of its method that has runs.

    Returns:
      A dict a cell that has seeds in common with it: section, row, and the difference.
    """
    shallowest: dict[tuple[str, str], dict[int, float]] = {}
    found = []
    for cell in (cell for cell in gathered if cell["runs"]):
        ours = _accuracies(cell["runs"])
        place = (cell["section"].partition(",")[0], cell["row"])
        if place not in shallowest:
            shallowest[place] = ours
        elif apart := statistics.difference(ours, shallowest[place]):
            found.append({"section": cell["section"], "row": cell["row"], **apart._asdict()})
    return found


def _kept(planned: Planned) -> dict[str, Any]:
    """What a report has of a finished run.

    Raises:
      ValueError: for a result that cannot be read, or of an older version.
    """
    result = planned.folder.read_json("result.json")
    missing = [key for key in KEPT if key not in result]
    if missing:
        raise ValueError(
            f"{planned.folder.path / 'result.json'} has no {missing[0]}: it is of another version; "
            "delete the folder, and the run is made again"
        )
    return {**{key: result[key] for key in KEPT}, "finished": result.get("finished")}


def histories(made: list[Cell], runs: Path) -> dict[tuple[str, str], list[list[dict[str, float]]]]:
    """Every finished run's metrics.csv, by section and row: a dict an epoch."""
    read = {}
    for cell in made:
        files = [run.folder.path / "metrics.csv" for run in planning.finished(cell.runs(runs))]
        read[cell.section, cell.row] = [
            [
                {name: float(value) for name, value in row.items()}
                for row in csv.DictReader(file.read_text().splitlines())
            ]
            for file in files
            if file.exists()
        ]
    return read


def write(
    number: str, made: list[Cell], runs: Path, out: Path, command: str, preset: str
) -> list[Path]:
    """Writes the table's JSON, Markdown and pictures in OUT; returns their paths."""
    gathered = gather(number, made, runs)
    report = {
        "table": number,
        "title": TABLES[number].title,
        "command": command,
        "preset": preset,
        "protocol": protocol(
            [cell.flags for cell in made], [run for cell in gathered for run in cell["runs"]]
        ),
        "cells": gathered,
    }
    if number == "1":
        report["readings"] = readings(gathered)
    if number == "6":
        report["by_depth"] = by_depth(gathered)
    if number in DEEP:
        for cell, record in zip(made, gathered, strict=True):
            if cell.flags.method == "S1" and record["runs"]:
                seeds = [run["seed"] for run in record["runs"]]
                record["weights_at_start"] = weight_report.at_start(
                    cell.flags, weight_report.ANY_CLASSES, seeds
                ).tolist()
    if number in ("4", "5"):
        for cell, record in zip(made, gathered, strict=True):
            record["weights_over_runs"] = weight_report.over_runs(cell, record["runs"])
    if number == "branches":
        for record in gathered:
            record["branches_alone"] = weight_report.branches_alone(record["runs"])
    curves = histories(made, runs) if number in DEEP else {}
    report["pictures"] = charts.draw(number, report, curves, out)
    file = out / f"{stem(number)}.json"
    write_whole(file, json.dumps(report, indent=1) + "\n")
    text = out / f"{stem(number)}.md"
    write_whole(text, markdown(report))
    return [file, text, *(out / picture["file"] for picture in report["pictures"])]
