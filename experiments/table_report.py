"""A table's report: its figures from the run folders, as JSON, Markdown and pictures."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments import comparison, paper, table_charts
from experiments.tables import TABLES, Cell, is_reference, sections

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
      and `history`, the epochs' figures), mean, deviation (over n - 1) and best of their accuracy
      in percent, and difference to Normal in points with its interval; None where there is none.
    """
    gathered = []
    for section in sections(made).values():
        accuracies = {}
        for cell in section:
            results = [planned.folder.result() for planned in cell.runs(runs)]
            there = [result for result in results if result is not None]
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
                    "runs": [{key: run[key] for key in KEPT} for run in there],
                }
            )
        references = [cell.row for cell in section if is_reference(cell)]
        if references:
            for record in gathered[-len(section) :]:
                if record["row"] != references[0]:
                    found = comparison.difference(
                        accuracies[record["row"]], accuracies[references[0]]
                    )
                    record["difference"] = found and found._asdict()
    return gathered


def histories(made: list[Cell], runs: Path) -> dict[tuple[str, str], list[list[dict[str, float]]]]:
    """Every finished run's metrics.csv, by section and row: a dict an epoch."""
    read = {}
    for cell in made:
        files = [planned.folder.path / "metrics.csv" for planned in cell.runs(runs)]
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
    """Writes OUT/tableN.json, OUT/tableN.md and the pictures; returns their paths."""
    gathered = gather(number, made, runs)
    report = {
        "table": number,
        "title": TABLES[number].title,
        "command": command,
        "preset": preset,
        "protocol": protocol(made, gathered),
        "cells": gathered,
    }
    if number in ("4", "5"):
        for cell, record in zip(made, gathered, strict=True):
            record["weights_over_runs"] = weights(cell, record["runs"])
    pictures = table_charts.draw(number, report, histories(made, runs), out)
    file = out / f"table{number}.json"
    file.write_text(json.dumps(report, indent=1) + "\n")
    text = out / f"table{number}.md"
    text.write_text(markdown(report, pictures))
    return [file, text, *pictures]


def protocol(made: list[Cell], gathered: list[dict[str, Any]]) -> str:
    """How the runs differ from the paper's, and on what they ran, in words."""
    flags = made[0].flags
    recipe = flags.identity(0)
    examples = "all" if flags.train_size is None else f"{flags.train_size:,}"
    said = (
        f"width {flags.width:g}, {examples} training examples, {recipe['epochs']} epochs, batch "
        f"{flags.batch_size}, {flags.dtype}"
    )
    same = flags.width == 1 and flags.train_size is None and flags.epochs is None
    said += " (the paper's)" if same else "; the paper's: width 1, all examples, 100 or 40 epochs"
    ran = [run for cell in gathered for run in cell["runs"]]
    devices = sorted({run["device"] for run in ran})
    versions = sorted({_versions(run["versions"]) for run in ran})
    return ". ".join([said, *devices, *versions])


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def weights(cell: Cell, ran: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What repeated runs say of the fusion's weights (paper, Tables IV and V; Figure 4).

    Returns:
      as_learned and comparable (see `comparison.with_comparable_signs`): the weights by run,
      [runs][branches] or [runs][branches][classes]; seeds; and outlying, the seeds of outlying
      runs by accuracy and comparable weights. None without a run.
    """
    if not ran:
        return None
    learned = np.array([run["weights"] for run in ran])
    flags = cell.flags
    groups = comparison.sharing_groups(
        tuple(ran[0]["branches"]), flags.depth, flags.width, flags.downsample, flags.fc == "shared"
    )
    if learned.ndim == 3:
        turned = comparison.with_comparable_signs(learned.swapaxes(1, 2), groups).swapaxes(1, 2)
    else:
        turned = comparison.with_comparable_signs(learned, groups)
    accuracy = np.array([[run["test_accuracy"]] for run in ran])
    marks = comparison.outlying(np.hstack([accuracy, turned.reshape(len(turned), -1)]))
    return {
        "as_learned": learned.tolist(),
        "comparable": turned.tolist(),
        "seeds": [run["seed"] for run in ran],
        "outlying": [run["seed"] for run, mark in zip(ran, marks, strict=True) if mark],
    }


def markdown(report: dict[str, Any], pictures: list[Path]) -> str:
    """The report for people."""
    text = [
        f"# {report['title']}",
        "",
        f"`{report['command']}`",
        "",
        f"Preset `{report['preset']}`: {report['protocol']}.",
        "",
        "Accuracy on the whole test split after the last epoch, percent; mean ± standard deviation",
        "over seeds. The difference is to Normal in points, of paired seeds, with the 95 %",
        "confidence interval of its mean. A dash stands for what is missing.",
        "",
    ]
    by_section: dict[str, list[dict[str, Any]]] = {}
    for record in report["cells"]:
        by_section.setdefault(record["section"], []).append(record)
    for section, records in by_section.items():
        text += [
            f"## {section}",
            "",
            "| | paper | ours | best | seeds | difference to Normal |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_row(record) for record in records),
            "",
        ]
    for record in report["cells"]:
        if record.get("weights_over_runs"):
            text += _weights_lines(report["table"], record)
    text += [line for picture in pictures for line in (f"![{picture.stem}]({picture.name})", "")]
    return "\n".join(text)


def _row(record: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    ours = number(record["mean"])
    if record["deviation"] is not None:
        ours += f" ± {record['deviation']:.2f}"
    found = record["difference"]
    apart = "-"
    if found is not None:
        apart = f"{found['mean']:+.2f}"
        if found["low"] is not None:
            apart += f" ({found['low']:+.2f} to {found['high']:+.2f})"
    seeds = f"{len(record['runs'])} of {len(record['seeds'])}"
    return (
        f"| {record['row']} | {number(record['paper'])} | {ours} | {number(record['best'])} | "
        f"{seeds} | {apart} |"
    )


def _weights_lines(number: str, record: dict[str, Any]) -> list[str]:
    found = record["weights_over_runs"]
    branches = [f"after {tap}" for tap in record["runs"][0]["branches"]]
    accuracy = np.array([run["test_accuracy"] for run in record["runs"]])
    inside = np.array([seed not in found["outlying"] for seed in found["seeds"]])
    text = [
        f"## Weights of {record['row']} on {record['section']}",
        "",
        "A branch's weight and its fully connected layer may trade their signs, branches that",
        "share the layer together; *comparable* weights have the deepest of each group positive.",
        "A run is outlying if its accuracy or a comparable weight is more than 3.5 scaled median",
        "distances from the median: "
        + (", ".join(f"seed {seed}" for seed in found["outlying"]) or "none")
        + ".",
        "",
    ]
    if number == "4":
        text += [
            f"| | accuracy | {' | '.join(branches)} |",
            "| --- |" + " --- |" * (len(branches) + 1),
        ]
        for name, suffix in (("mean", ""), ("variance", ""), ("mean", "_without_13")):
            row = paper.table("4")["cells"].get(name + suffix, {})
            shown = [row.get(column) for column in ("accuracy", "1", "2", "3", "4")]
            cells = " | ".join("-" if value is None else f"{value:.4f}" for value in shown)
            text.append(f"| paper, {name}{suffix.replace('_', ' ')} | {cells} |")
        for kind in ("as_learned", "comparable"):
            values = np.column_stack([accuracy, np.array(found[kind])])
            for which, rows in (("all", values), ("without outlying", values[inside])):
                for name, figures in (
                    ("mean", rows.mean(axis=0)),
                    ("variance", rows.var(axis=0)),
                ):
                    cells = " | ".join(f"{value:.4f}" for value in figures)
                    text.append(f"| {kind.replace('_', ' ')}, {which}, {name} | {cells} |")
        return [*text, ""]
    for kind in ("as_learned", "comparable"):
        mean = np.array(found[kind]).mean(axis=0)
        classes = range(1, mean.shape[1] + 1)
        text += [
            f"Mean weights, {kind.replace('_', ' ')}, by branch and class:",
            "",
            f"| | {' | '.join(map(str, classes))} | mean of absolutes |",
            "| --- |" + " --- |" * (mean.shape[1] + 1),
            *(
                f"| {branch} | {' | '.join(f'{value:+.2f}' for value in row)} | "
                f"{np.abs(row).mean():.2f} |"
                for branch, row in zip(branches, mean, strict=True)
            ),
            "",
        ]
    return text
