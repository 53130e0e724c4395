"""A table's report: JSON, Markdown and pictures, of the runs that are finished."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cli.configuration import PLACES, Configuration, as_flag
from experiments.page import markdown
from experiments.runs.files import write_whole
from experiments.sweep.record import Record
from experiments.tables import pictures, statistics
from experiments.tables.frame import Results, columns
from experiments.tables.methods import DATASETS
from experiments.tables.table import Choice, Table, words

NOTE = """\
Accuracy on the whole test split after the last epoch, percent; mean ± standard deviation
over seeds. A difference is in points, of paired seeds, with the 95 % confidence interval
of its mean; the pairs are counted where not every run has one. A dash stands for a
figure that the paper does not print, or for nothing to compare with.
"""


def write(table: Table, choice: Choice, record: Record, out: Path, command: str) -> list[Path]:
    """Writes NAME.json, NAME.md and the table's pictures in OUT; returns their paths.

    Args:
      command: that makes the report.
    """
    results = Results(table.cells(choice), table.run_seeds(choice), record, out)
    described = protocol([cell.flags for cell in results.cells], results.runs)
    cells, text = _cells(table, results)
    report = {
        "table": table.name,
        "title": table.title,
        "command": command,
        "preset": choice.preset,
        "protocol": described,
        "cells": cells,
    }
    for detail in table.details(results):
        section = {"title": detail.title, "rows": detail.rows}
        report[detail.name] = [*report.get(detail.name, []), section]
        if detail.rows and detail.printed:
            head = ["" if name == "row" else name for name in detail.rows[0]]
            rows = [list(row.values()) for row in detail.rows]
            text += [f"## {detail.title}\n", *([f"{detail.note}\n"] if detail.note else [])]
            text += markdown.table(head, rows, detail.form)
    drawn = table.pictures(results) if len(results.runs) else ()
    report["pictures"] = pictures.save(drawn, out)
    text = [
        f"# {table.title}\n\n```\n{command}\n```\n",
        f"Preset `{choice.preset}`: {described}.\n\n{NOTE}",
        *text,
        *(f"![{picture['shows']}]({picture['file']})\n" for picture in report["pictures"]),
    ]
    files = [out / f"{table.name}.json", out / f"{table.name}.md"]
    write_whole(files[0], json.dumps(report, indent=1, default=vars) + "\n")
    write_whole(files[1], "\n".join(text))
    return [*files, *(out / picture["file"] for picture in report["pictures"])]


def _cells(table: Table, results: Results) -> tuple[list[dict[str, Any]], list[str]]:
    """Every cell's figures, and as Markdown, a heading and a table per section."""
    figures, sections = [], {}
    for cell in results.cells:
        runs = results.of(cell.flags)
        spread = statistics.spread(runs["test_accuracy"])
        best = None if spread is None else float(runs["test_accuracy"].max())
        difference = results.difference(cell.flags, cell.reference)
        to = cell.reference and words(table.rows, getattr(cell.reference, table.rows))
        figures.append(
            {
                "section": cell.section,
                "row": cell.row,
                **columns(cell.flags),
                "paper": cell.paper,
                **(vars(spread) if spread else {"mean": None, "deviation": None}),
                "best": best,
                "difference": difference,
                "to": difference and to,
                "seeds": results.seeds,
                "runs": runs["run"].tolist(),
            }
        )
        printed = markdown.text(cell.paper)
        if cell.paper is not None and table.paper_dataset not in (None, cell.flags.dataset):
            printed += f" ({table.paper_dataset})"
        ours = (spread, best) if spread else (markdown.MISSING, markdown.MISSING)
        seeds = f"{len(runs)} of {len(results.seeds)}"
        row = [cell.row, printed, *ours, seeds, difference]
        sections.setdefault(cell.section, []).append(row)
    to = words(table.rows, table.reference) if table.reference else "the row above"
    head = ["", "paper", "ours", "best", "seeds", f"difference to {to}"]
    text = []
    for section, rows in sections.items():
        text += [f"## {section}\n", *markdown.table(head, rows)]
    return figures, text


def protocol(trained: list[Configuration], runs: pd.DataFrame) -> str:
    """How runs differ from the paper's, and on what they ran, in words.

    Args:
      trained: configurations of the runs; what they have in common is said of the first.
      runs: those that are finished: device and versions.
    """
    lengths = sorted({flags.resolved_epochs() for flags in trained})
    sizes = {flags.train_size for flags in trained}
    widths = " or ".join(f"{width:g}" for width in sorted({flags.width for flags in trained}))
    examples = sorted("all" if size is None else f"{size:,}" for size in sizes)
    text = (
        f"width {widths}, {' or '.join(examples)} training examples, "
        f"{' or '.join(map(str, lengths))} epoch{'' if lengths == [1] else 's'}, "
        f"batch {trained[0].batch_size}, {trained[0].dtype}"
    )
    for name in ("taps", "image_size", "downsample", "fc"):
        values = {getattr(flags, name) for flags in trained}
        if len(values) == 1 and values != {getattr(Configuration(), name)}:
            text += f", --{name}={as_flag(values.pop())}"
    if all(_is_the_paper_s(flags) for flags in trained):
        text += " (the paper's)"
    else:
        text += "; the paper's: width 1, all examples, 100 or 40 epochs, batch 64"
    versions = {versions_line(versions) for versions in runs["versions"]}
    return ". ".join([text, *sorted(set(runs["device"])), *sorted(versions)])


def _is_the_paper_s(flags: Configuration) -> bool:
    """Whether the protocol is IV-B's, but for what the paper's tables vary."""
    varied = ("method", "dataset", "depth", "seed", "downsample", *PLACES)
    same = Configuration(**{name: getattr(flags, name) for name in varied})
    return flags == same and flags.dataset in DATASETS


def versions_line(versions: dict[str, str]) -> str:
    """A run's versions in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
