"""A table's report: its figures from the run folders, as JSON, Markdown and pictures."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

import interflow_jax as ij
from experiments import comparison, sweep, table_charts
from experiments.configuration import PLACES, Configuration, as_flag
from experiments.sweep import Planned
from experiments.table_markdown import markdown
from experiments.tables import DATASETS, TABLES, Cell, is_reference, sections, stem

KEPT = (
    *("method", "dataset", "seed", "depth", "width", "downsample", "epochs", "train_size"),
    *("test_accuracy", "branch_accuracy", "branches", "weights", "train_loss", "test_loss"),
    *("test_examples", "train_seconds", "images_per_second", "parameters", "fingerprint"),
    *("device", "versions", "command"),
)
"""What of a run's result.json goes into the report."""


def gather(number: str, made: list[Cell], runs: Path) -> list[dict[str, Any]]:
    """The figures of every cell from the runs that are finished.

    Returns:
      A dict a cell: section, row, paper (percent), seeds (asked for), runs (what `KEPT` names,
      and `finished`, the time, if the run recorded it), mean, deviation (over n - 1) and best of
      their accuracy in percent, and difference in points with its interval and the name of the
      row that it is to (in Table I the depth before, else a Normal or `shared`); None where there
      is none. A baseline's cell has `below_s1` too, by how much S1 is ahead of it, if its section
      has S1.
    """
    gathered = []
    for section in sections(made).values():
        accuracies = {}
        for cell in section:
            there = [_kept(planned) for planned in sweep.finished(cell.runs(runs))]
            accuracies[cell.row] = {run["seed"]: run["test_accuracy"] for run in there}
            values = list(accuracies[cell.row].values())
            gathered.append(
                {
                    "section": cell.section,
                    "row": cell.row,
                    "paper": cell.paper,
                    "seeds": list(cell.seeds),
                    "mean": float(np.mean(values)) if values else None,
                    "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "best": max(values, default=None),
                    "difference": None,
                    "runs": there,
                }
            )
        for place, record in enumerate(gathered[-len(section) :]):
            to = _compared_with(number, section, place)
            if to is not None:
                found = comparison.difference(accuracies[record["row"]], accuracies[to])
                record["difference"] = found and {**found._asdict(), "to": to}
        rows = {cell.flags.method: cell.row for cell in section}
        if "S1" in rows:
            for record in gathered[-len(section) :]:
                if record["row"] in ij.BASELINES:
                    ahead = comparison.difference(accuracies[rows["S1"]], accuracies[record["row"]])
                    record["below_s1"] = ahead and ahead._asdict()
    return gathered


def _compared_with(number: str, section: list[Cell], place: int) -> str | None:
    """The row that a cell's difference is to, if there is one."""
    if number == "1":  # what the paper says of it is where the accuracy jumps
        return section[place - 1].row if place else None
    references = [cell.row for cell in section if is_reference(cell)]
    return references[0] if references and references[0] != section[place].row else None


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
        files = [run.folder.path / "metrics.csv" for run in sweep.finished(cell.runs(runs))]
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
    if number in ("4", "5"):
        for cell, record in zip(made, gathered, strict=True):
            record["weights_over_runs"] = weights(cell, record["runs"])
    if number == "branches":
        for record in gathered:
            record["branches_alone"] = branches_alone(record["runs"])
    report["pictures"] = table_charts.draw(number, report, histories(made, runs), out)
    file = out / f"{stem(number)}.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    text = out / f"{stem(number)}.md"
    text.write_text(markdown(report))
    return [file, text, *(out / picture["file"] for picture in report["pictures"])]


def protocol(trained: list[Configuration], results: list[dict[str, Any]]) -> str:
    """How runs differ from the paper's, and on what they ran, in words.

    Args:
      trained: configurations of the runs; what they have in common is said of the first.
      results: of those that are finished: device and versions.
    """
    flags = trained[0]
    lengths = sorted({each.resolved_epochs() for each in trained})
    sizes = {each.train_size for each in trained}
    widths = " or ".join(f"{width:g}" for width in sorted({each.width for each in trained}))
    examples = sorted("all" if size is None else f"{size:,}" for size in sizes)
    said = (
        f"width {widths}, {' or '.join(examples)} training examples, "
        f"{' or '.join(map(str, lengths))} epoch{'' if lengths == [1] else 's'}, "
        f"batch {flags.batch_size}, {flags.dtype}"
    )
    for name in ("taps", "image_size", "downsample", "fc"):
        values = {getattr(each, name) for each in trained}
        if len(values) == 1 and values != {getattr(Configuration(), name)}:
            said += f", --{name}={as_flag(values.pop())}"
    if all(_is_the_paper_s(each) for each in trained):
        said += " (the paper's)"
    else:
        said += "; the paper's: width 1, all examples, 100 or 40 epochs, batch 64"
    devices = sorted({result["device"] for result in results})
    versions = sorted({versions_line(result["versions"]) for result in results})
    return ". ".join([said, *devices, *versions])


def _is_the_paper_s(flags: Configuration) -> bool:
    """Whether the protocol is IV-B's, but for what the paper's tables vary."""
    varied = ("method", "dataset", "depth", "seed", "downsample", *PLACES)
    same = Configuration(**{name: getattr(flags, name) for name in varied})
    return flags == same and flags.dataset in DATASETS


def versions_line(versions: dict[str, str]) -> str:
    """A run's versions in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def weights(cell: Cell, ran: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What repeated runs say of the fusion's weights (paper, Tables IV and V; Figure 4).

    Returns:
      as_learned and comparable (see `comparison.with_comparable_signs`): the weights by run,
      [runs][branches] or [runs][branches][classes]; seeds; and, of one weight a branch, outlying:
      the seeds of outlying runs by accuracy and comparable weights. (Of forty weights, one or
      another is far from its median in most runs.) None without a run.
    """
    if not ran:
        return None
    learned = np.array([run["weights"] for run in ran])
    flags = cell.flags
    groups = comparison.sharing_groups(
        tuple(ran[0]["branches"]), flags.depth, flags.width, flags.downsample, flags.fc == "shared"
    )
    seeds = [run["seed"] for run in ran]
    if learned.ndim == 3:
        turned = comparison.with_comparable_signs(learned.swapaxes(1, 2), groups).swapaxes(1, 2)
        return {"as_learned": learned.tolist(), "comparable": turned.tolist(), "seeds": seeds}
    turned = comparison.with_comparable_signs(learned, groups)
    accuracy = np.array([[run["test_accuracy"]] for run in ran])
    marks = comparison.outlying(np.hstack([accuracy, turned]))
    return {
        "as_learned": learned.tolist(),
        "comparable": turned.tolist(),
        "seeds": seeds,
        "outlying": [seed for seed, mark in zip(seeds, marks, strict=True) if mark],
    }


def branches_alone(ran: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well every branch predicts by itself, beside the fusion of all.

    Returns:
      A dict a branch, shallow to deep: after (the convolution), mean and deviation of its accuracy
      in percent, and difference, in points, to that of the fusion in the same runs.
    """
    fused = {run["seed"]: run["test_accuracy"] for run in ran}
    made = []
    for branch, after in enumerate(ran[0]["branches"] if ran else ()):
        alone = {run["seed"]: run["branch_accuracy"][branch] for run in ran}
        values = list(alone.values())
        found = comparison.difference(alone, fused)
        assert found is not None  # the runs are the same
        made.append(
            {
                "after": after,
                "mean": float(np.mean(values)),
                "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "difference": found._asdict(),
            }
        )
    return made
