"""Puts everything in the results folder on one page.

python -m experiments.report
"""

import re
import shlex
import sys
from pathlib import Path

import pandas as pd

from experiments.cli import configuration
from experiments.page.html import page
from experiments.runs.files import writable, write_whole
from experiments.tables.index import TABLES
from experiments.tables.methods import table_2
from experiments.tables.report import versions_line

LEAD = """\
# Interflow in JAX: the paper's tables, reproduced

Zhicheng Cai, “Interflow: Aggregating Multi-layer Feature Mappings with Attention Mechanism”, 2021,
[arXiv:2106.14073](https://arxiv.org/abs/2106.14073), lets every stage of a network predict, and
learns how much each prediction counts. `interflow_jax` implements it in JAX and Flax. Here are its
figures beside the paper's, table by table, each with the protocol of its runs and its command.
A method is judged at the paper's learning rate and at its own best one.
"""

FIRST = ("rates", "best", "table3")
"""Tables whose picture may open the page: that of the first one that has any."""

OTHERS = {
    "gradients": "Gradients by layer",
    "benchmark": "A training step's time beside plain Flax and PyTorch",
}
"""Commands that write a report under their own name, and its title."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = configuration.parser(
        "report",
        "Writes OUT/index.html: one page with OUT/README.md, Table II and whatever `reproduce`,\n"
        "`gradients` and `benchmark` wrote in OUT, pictures included. The page needs no other\n"
        "file, and says what is missing and how to make it.",
        "example:\n  python -m experiments.report --out=results\n",
    )
    parser.add_argument("--out", default="results", help="folder of reports (default: results)")
    out = Path(parser.parse_args(arguments).out)
    try:
        sections = contents(out)
        text = page(f"{LEAD}\n{first_picture(out)}", sections, out)
        writable(out)
        write_whole(out / "index.html", text)
    except (ValueError, OSError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {out / 'index.html'}")
    return 0


def contents(out: Path) -> dict[str, str]:
    """The page's sections by anchor, as Markdown: what was written, or the command to write it."""
    place = "" if out == Path("results") else f" {shlex.quote(f'--out={out}')}"
    written = {file.stem: file.read_text(errors="replace") for file in sorted(out.glob("*.md"))}
    if not {table.name for table in TABLES.values()} & written.keys():
        command = f"python -m experiments.reproduce --table=3{place}"
        raise ValueError(f"{out} has no table's report; try {command}")
    written["table2"] = f"# Table II: the methods\n\n{table_2()}\n"
    commands = {table.name: f"reproduce --table={name}" for name, table in TABLES.items()}
    titles = {table.name: table.title for table in TABLES.values()} | OTHERS
    order = sorted(["table2", *commands], key=lambda name: (not name.startswith("table"), name))
    sections = {}
    if "README" in written:
        text = written.pop("README").lstrip()
        sections["findings"] = text if text.startswith("# ") else f"# Findings\n\n{text}"
    for name in (*order, *OTHERS):
        command = f"python -m experiments.{commands.get(name, name)}{place}"
        missing = f"# {titles.get(name)} (missing)\n\nIts command:\n\n```\n{command}\n```\n"
        sections[name] = written.pop(name, missing)
    origin = origins(out / "runs.jsonl")
    return sections | written | ({"runs": f"# The runs\n\n{origin}\n"} if origin else {})


def first_picture(out: Path) -> str:
    """What the page opens with, as Markdown; "" where no table of `FIRST` has a picture."""
    for file in (out / f"{name}.md" for name in FIRST):
        picture = file.exists() and re.search(r"^!\[.*\]\(.*\)$", file.read_text(), re.MULTILINE)
        if picture:
            return picture[0]
    return ""


def origins(file: Path) -> str:
    """When, on what, with which versions and for how long the runs of runs.jsonl were trained."""
    if not file.exists():
        return ""
    try:
        runs = pd.read_json(file, lines=True)
        days = sorted(runs["finished"].dropna().str[:10].unique())
        when = f", finished on {' to '.join(dict.fromkeys(days[:1] + days[-1:]))} (UTC)"
        hours = runs["train_seconds"].sum() / 3600
        devices = sorted(runs["device"].unique())
        versions = sorted({versions_line(each) for each in runs["versions"]})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a record of runs ({error!r}); delete it") from error
    lines = [f"Runs: {len(runs)}{when if days else ''}", f"Hours of training: {hours:.1f}"]
    lines += [f"On: {device}" for device in devices] + [f"With: {each}" for each in versions]
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
