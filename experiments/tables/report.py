"""A table's report: sections of figures and pictures, written as Markdown and as JSON."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.tables import statistics
from experiments.tables.runs import OLDER, Frame, finished
from interflow_jax.cli import charts, markdown
from interflow_jax.cli.config import DEFAULT, as_flag
from interflow_jax.cli.files import write_whole

INTRODUCTION = f"""\
Accuracy on the whole test split, percent: of the last epoch, as the paper's, and the mean of the
last ten epochs (of fewer than twenty, of their last half), by which rows are compared; mean ±
standard deviation over runs. A dash stands for what there is not.

{statistics.RULE}
"""


class Section(NamedTuple):
    """A table of figures."""

    title: str
    rows: list[dict[str, Any]]  # figures by column; the first column names the row
    key: str = "cells"  # in JSON, of all sections of this kind
    note: str = ""
    form: str = ".2f"  # of floats
    columns: Sequence[str] | None = None  # those in Markdown; None for all


class Picture(NamedTuple):
    """A figure, its file's name without extension, and what it shows in words."""

    name: str
    shows: str
    figure: Figure


def write(
    name: str, facts: dict[str, str], runs: Frame, parts: Iterable[Section | Picture], out: Path
) -> str:
    """Writes OUT/NAME.json, NAME.md and pictures; returns the Markdown.

    Args:
      facts: the table's `title`, the `command` that made the report, `preset`, and any `note`.
      runs: the table's runs, matched.
      parts: what the table reports on them.
    """
    done = finished(runs)
    machines = done[["letter", "machine"]].drop_duplicates().sort_values("letter")
    report: dict[str, Any] = {
        "table": name,
        **facts,
        "protocol": protocol(done),
        "machines": [": ".join(filter(None, row)) for row in machines.to_numpy()],
        "pictures": [],
    }
    notes = [facts["note"]]
    if older := int(done[OLDER].eq(True).sum()):
        notes.append(f"Branches' accuracies of {older} run(s) are of an older definition: unused.")
    text = [
        f"# {facts['title']}\n\n```\n{facts['command']}\n```\n",
        f"{'. '.join([report['protocol'], *report['machines']])}.\n",
        INTRODUCTION,
        *(f"{note}\n" for note in notes if note),
    ]
    style: Any = charts.STYLE
    with plt.rc_context(style):
        for part in parts:
            if isinstance(part, Section):
                kept = {"title": part.title, "rows": part.rows, "note": part.note}
                report.setdefault(part.key, []).append(kept)
                columns = part.columns or list(part.rows[0])
                rows = [[row.get(name) for name in columns] for row in part.rows]
                head = ["" if name == "row" else name for name in columns]
                text += [f"## {part.title}\n", *markdown.table(head, rows, part.form)]
                text += [f"{part.note}\n"] if part.note else []
            else:
                file = f"{part.name}.png"
                charts.save(part.figure, out / file)
                report["pictures"].append({"file": file, "shows": part.shows})
                text.append(f"![{part.shows}]({file})\n")
    write_whole(out / f"{name}.json", json.dumps(report, indent=1, default=vars) + "\n")
    write_whole(out / f"{name}.md", "\n".join(text))
    return "\n".join(text)


def reported(file: Path) -> dict[str, str]:
    """The names of an earlier report's runs, each with the report's command; {} without one."""
    try:
        report = json.loads(file.read_text())
        rows = [row for section in report["cells"] for row in section["rows"]]
        return {run: report["command"] for row in rows for run in row["runs"]["names"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def protocol(runs: Frame) -> str:
    """How runs were trained where the paper's tables do not say it, in words."""
    told = {"method", "dataset", "depth", "seed"}  # by the headings
    given = []
    for name, default in DEFAULT.flat().items():
        values = dict.fromkeys(config.flat()[name] for config in runs["config"])
        if name == "epochs" and {*values} != {None}:
            values = dict.fromkeys(sorted(set(runs["epochs"])))
        if {*values} != {default} and name not in told:
            given.append(f"--{name}={' or '.join(map(as_flag, values))}")
    papers = "width 1, all examples, 100 epochs on CIFAR and 40 on the others, batch 64"
    return f"{' '.join(given)}; the paper's: {papers}" if given else f"The paper's: {papers}"
