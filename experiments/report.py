"""Puts all that is in the folder of results on one page.

python -m experiments.report
"""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import gradients, reproduce, study
from experiments.cli import configuration
from experiments.page.html import page
from experiments.runs.files import writable, write_whole
from experiments.tables.cells import TABLES, stem
from experiments.tables.markdown import markdown
from experiments.tables.protocol import versions_line
from experiments.timing import report as timing_report

_LEAD = """\
# Interflow in JAX: the paper's tables, reproduced

Zhicheng Cai, “Interflow: Aggregating Multi-layer Feature Mappings with Attention Mechanism”, 2021,
[arXiv:2106.14073](https://arxiv.org/abs/2106.14073), lets every stage of a network predict, and
learns how much each prediction counts. `interflow_jax` implements it in JAX and Flax. Here are its
figures beside the paper's, table by table, with the protocol of the runs and the commands that made
them. Where a protocol is smaller than the paper's, neither accuracies nor differences are those of
networks trained to the end: the differences say which method learns faster.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = configuration.parser(
        "report",
        "Writes OUT/index.html: one page with OUT/README.md, every table that `python -m\n"
        "experiments.reproduce` wrote, their pictures, Table II, what `gradients` and `study`\n"
        "wrote, and the benchmark in short. The page needs no other file, and says what is\n"
        "missing and how to make it.",
        "example:\n  python -m experiments.report --out=results\n",
    )
    parser.add_argument("--out", default="results", help="folder of reports (default: results)")
    flags = parser.parse_args(arguments)
    out = Path(flags.out)
    try:
        lead, sections = contents(out)
        text = page(lead, sections, out)
        writable(out)
        write_whole(out / "index.html", text)
    except (ValueError, OSError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {out / 'index.html'}")
    return 0


class _Run(NamedTuple):
    """Where a run came from: finished is the time, if it is known; seconds are of training."""

    device: str
    versions: str
    finished: str | None
    seconds: float


class _Made(NamedTuple):
    """What a command has written.

    Attributes:
      markdown: for people.
      command: that wrote it.
      runs: behind it, by their commands, for tables share some.
    """

    markdown: str
    command: str
    runs: dict[str, _Run]


def contents(out: Path) -> tuple[str, dict[str, str]]:
    """The page's head, and its sections by anchor, as Markdown.

    Raises:
      ValueError: if there is no table, or a file is not what our commands write.
    """
    made = {}
    for number in TABLES:
        file = out / f"{stem(number)}.json"
        if file.exists():
            made[number] = _read(file, _table, f"{_command(number, out)} --report")
    if not made:
        raise ValueError(f"{out} has no table's report; try {_command('3', out)}")
    sections = {}
    findings = out / "README.md"
    if findings.exists():
        text = findings.read_text(errors="replace").lstrip()
        sections["findings"] = text if text.startswith("# ") else f"# Findings\n\n{text}"
    for number in sorted([*TABLES, "2"]):
        if number in made:
            text = made[number].markdown
        elif number == "2":
            text = f"# Table II: the methods\n\n{_block(_command('2', out))}{reproduce.table_2()}"
        else:
            text = _missing(TABLES[number].title, _command(number, out))
        sections[stem(number)] = text
    others = {
        "gradients": ("Gradients by layer", _text(gradients.markdown)),
        "study": ("Which small training tells methods apart", _text(study.markdown)),
        "benchmark": ("A training step's time beside plain Flax and PyTorch", _benchmark),
    }
    for name, (title, form) in others.items():
        if (out / f"{name}.json").exists():
            made[name] = _read(out / f"{name}.json", form, _with(out, name))
            sections[name] = made[name].markdown
        else:
            sections[name] = _missing(title, _with(out, name))
    commands = [
        made[name].command
        if name in made
        else _with(out, name)
        if name in others
        else _command(name, out)
        for name in (*TABLES, *others)
    ]
    sections["commands"] = (
        "# All commands\n\n`experiments.reproduce` goes on where it was interrupted, and trains "
        "nothing twice. The last command makes this page.\n\n"
        + _block(*commands, _with(out, "report"))
    )
    runs = {command: run for each in made.values() for command, run in each.runs.items()}
    return _LEAD + _origins(list(runs.values())), sections


def _with(out: Path, *command: str) -> str:
    """One of our commands for this folder of results."""
    place = [] if out == Path("results") else [f"--out={out}"]
    return shlex.join(["python", "-m", f"experiments.{command[0]}", *command[1:], *place])


def _command(number: str, out: Path) -> str:
    return _with(out, "reproduce", f"--table={number}")


def _missing(title: str, command: str) -> str:
    return f"# {title} (missing)\n\nThis command makes it:\n\n{_block(command)}"


def _block(*lines: str) -> str:
    return "\n".join(["```", *lines, "```", "", ""])


def _read(file: Path, form: Callable[[dict[str, Any]], _Made], remedy: str) -> _Made:
    """Reads a report.

    Raises:
      ValueError: naming the file, if it cannot be read or has another form.
    """
    try:
        return form(json.loads(file.read_text()))
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a report of this version ({error!r}); delete it, or write it anew "
            f"with the flags of its runs: {remedy}"
        ) from error


def _table(report: dict[str, Any]) -> _Made:
    runs = {
        run["command"]: _Run(
            run["device"],
            versions_line(run["versions"]),
            run["finished"],
            float(run["train_seconds"]),
        )
        for record in report["cells"]
        for run in record["runs"]
    }
    return _Made(markdown(report), report["command"], runs)


def _text(markdown_of: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], _Made]:
    return lambda report: _Made(markdown_of(report), report["command"], {})


def _benchmark(report: dict[str, Any]) -> _Made:
    text = (
        "# A training step's time beside plain Flax and PyTorch\n\n"
        f"{_block(report['command'])}{report['device']}. {versions_line(report['versions'])}. "
        "A ratio above 1 says that ours is faster; PyTorch's is its fastest mode.\n\n"
    )
    return _Made(text + "\n".join(timing_report.in_short(report)), report["command"], {})


def _origins(runs: list[_Run]) -> str:
    """When, on what and with which versions the runs were made, and what they cost."""
    days = sorted({run.finished[:10] for run in runs if run.finished})
    count = f"Runs of the tables: {len(runs)}"
    if days:
        count += f", finished on {days[0]}" + (f" to {days[-1]}" if days[1:] else "") + " (UTC)"
    cost = f"Time in their training: {sum(run.seconds for run in runs) / 3600:.1f} hours"
    devices = sorted({f"On: {run.device}" for run in runs})
    versions = sorted({f"With: {run.versions}" for run in runs})
    return "\n".join(["", *(f"- {line}" for line in (count, cost, *devices, *versions))])


if __name__ == "__main__":
    sys.exit(main())
