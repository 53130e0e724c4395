"""A table's report on its finished runs: JSON, Markdown and pictures."""

import json
from pathlib import Path
from typing import Any

from experiments.cli.configuration import PLACES, VGG, Configuration, as_flag
from experiments.page import markdown
from experiments.runs.files import write_whole
from experiments.sweep.record import Record
from experiments.tables import pictures, statistics
from experiments.tables.frame import Frame, Results, columns
from experiments.tables.methods import DATASETS
from experiments.tables.statistics import Difference
from experiments.tables.table import Choice, Detail, Table, words

NOTE = """\
Accuracy on the whole test split after the last epoch, percent; mean ± standard deviation
over seeds. A difference is in points, of paired seeds, with the 95 % confidence interval
of its mean (Student's t); the pairs are counted where not every run has one. Welch's is of all
runs, paired or not. A dash stands for a figure that the paper does not print, or for nothing to
compare with.

Verdicts are by the pairs. *Equal*: the interval lies within {margin} points of zero. *Ahead* or
*behind*: p is below 0.05 after Holm's correction for all differences of the same column, on
whatever dataset. Else *undecided*. Intervals are not corrected.
"""

MIXED = """\
Where some runs of a cell have begun to learn and others have not, which a mean would hide, it
says how many have, with the exact 95 % interval of their share, and is compared with nothing. A
run has begun whose accuracy is {chances} times chance's.
"""


def write(table: Table, choice: Choice, record: Record, out: Path, command: str) -> list[Path]:
    """Writes NAME.json, NAME.md and the table's pictures in OUT; returns their paths.

    Args:
      command: the command that makes the report.
    """
    cells, seeds = table.cells(choice), table.run_seeds(choice)
    results = Results(cells, seeds, record, out, table.may_fail)
    report: dict[str, Any] = {"table": table.name, "title": table.title, "command": command}
    report["preset"] = choice.preset
    report["protocol"] = protocol([cell.flags for cell in results.cells], results.runs)
    report["cells"], text = _cells(table, results)
    details = [*table.details(results)]
    _judge(details)
    for detail in details:
        report.setdefault(detail.name, []).append({"title": detail.title, "rows": detail.rows})
        if detail.rows and detail.printed:
            head = ["" if name == "row" else name for name in detail.rows[0]]
            text += [f"## {detail.title}\n", *([f"{detail.note}\n"] if detail.note else [])]
            text += markdown.table(head, [[*row.values()] for row in detail.rows], detail.form)
    drawn = table.pictures(results) if len(results.runs) else ()
    report["pictures"] = pictures.save(drawn, out)
    text = [
        f"# {table.title}\n\n```\n{command}\n```\n",
        f"Preset `{choice.preset}`: {report['protocol']}.\n",
        NOTE.format(margin=statistics.MARGIN),
        *([MIXED.format(chances=statistics.CHANCES)] if table.may_fail else []),
        *([f"{table.note}\n"] if table.note else []),
        *text,
        *(f"![{picture['shows']}]({picture['file']})\n" for picture in report["pictures"]),
    ]
    files = [out / f"{table.name}.json", out / f"{table.name}.md"]
    write_whole(files[0], json.dumps(report, indent=1, default=vars) + "\n")
    write_whole(files[1], "\n".join(text))
    return [*files, *(out / picture["file"] for picture in report["pictures"])]


def _judge(details: list[Detail]) -> None:
    """Gives every difference its verdict, among those in the same column of details of one name."""
    columns: dict[tuple[str, str], list[Difference]] = {}
    for detail in details:
        for row in detail.rows:
            for name, value in row.items():
                if isinstance(value, Difference):
                    columns.setdefault((detail.name, name), []).append(value)
    for differences in columns.values():
        statistics.judge(differences)


def _cells(table: Table, results: Results) -> tuple[list[dict[str, Any]], list[str]]:
    """Every cell's figures, and as Markdown, a heading and a table per section."""
    figures, sections = [], {}
    differences = [results.difference(cell.flags, cell.reference) for cell in results.cells]
    statistics.judge([each for each in differences if each])
    for cell, difference in zip(results.cells, differences, strict=True):
        runs = results.of(cell.flags)
        ours = statistics.spread(runs["test_accuracy"])
        best = float(runs["test_accuracy"].max()) if ours else None
        begun = None
        if results.is_mixed(cell.flags):
            begun = statistics.Share(int(statistics.learned(runs).sum()), len(runs))
        to = cell.reference and words(cell.reference, table.rows)
        figures.append(
            {"section": cell.section, "row": cell.row, **columns(cell.flags), "paper": cell.paper}
            | (vars(ours) if ours else {"mean": None, "deviation": None})
            | {"best": best, "begun": begun, "difference": difference, "to": difference and to}
            | {"seeds": results.seeds, "runs": runs["run"].tolist()}
        )
        printed = markdown.text(cell.paper)
        if cell.paper is not None and table.paper_dataset not in (None, cell.flags.dataset):
            printed += f" ({table.paper_dataset})"
        shown = (begun or ours, best) if ours else (markdown.MISSING, markdown.MISSING)
        row = [cell.row, printed, *shown, f"{len(runs)} of {len(results.seeds)}"]
        sections.setdefault(cell.section, []).append(
            [*row, difference, difference and difference.welch]
        )
    head = ["", "paper", "ours", "best", "seeds", f"difference to {table.compared_with}", "Welch's"]
    text = []
    for section, rows in sections.items():
        text += [f"## {section}\n", *markdown.table(head, rows)]
    return figures, text


def protocol(trained: list[Configuration], runs: Frame) -> str:
    """How runs differ from the paper's, and on what they ran, in words.

    Args:
      trained: configurations of the runs; what they have in common is taken from the first.
      runs: the finished ones, for their devices and versions.
    """
    epochs = sorted({flags.resolved_epochs() for flags in trained})
    sizes = {flags.train_size for flags in trained}
    examples = sorted("all" if size is None else f"{size:,}" for size in sizes)
    widths = " or ".join(f"{width:g}" for width in sorted({flags.width for flags in trained}))
    text = "" if all(flags.backbone != VGG for flags in trained) else f"width {widths}, "
    text += f"{' or '.join(examples)} training examples, "
    text += f"{' or '.join(map(str, epochs))} epoch{'' if epochs == [1] else 's'}, "
    text += f"batch {trained[0].batch_size}, {trained[0].dtype}"
    named = {"width", "train_size", "epochs", "batch_size", "dtype"}
    readings = {"downsample", "layout"}  # of what the paper leaves open
    varied = {"method", "dataset", "depth", "seed", *readings, *PLACES}  # by the paper's tables
    for name, default in vars(Configuration()).items():
        values = {getattr(flags, name) for flags in trained}
        if name not in named | varied - readings and values != {default} and len(values) == 1:
            text += f", --{name}={as_flag(*values)}"
    of_paper = [Configuration(**{name: vars(flags)[name] for name in varied}) for flags in trained]
    if trained == of_paper and {flags.dataset for flags in trained} <= set(DATASETS):
        text += " (the paper's)"
    else:
        text += "; the paper's: width 1, all examples, 100 or 40 epochs, batch 64"
    versions = {versions_line(versions) for versions in runs["versions"]}
    return ". ".join([text, *sorted(set(runs["device"])), *sorted(versions)])


def versions_line(versions: dict[str, str]) -> str:
    """A run's versions in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
