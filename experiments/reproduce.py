"""Reproduces the paper's tables and its figure of results.

python -m experiments.reproduce --table=3 --datasets=cifar10 --methods=Normal,S3
"""

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax

import interflow_jax as ij
from experiments.cli import configuration
from experiments.cli.configuration import Configuration
from experiments.cli.console import duration
from experiments.runs.files import writable
from experiments.runs.stopping import StoppedError
from experiments.sweep import planning, time_left, work
from experiments.sweep.planning import Planned
from experiments.tables import cells, presets, report
from experiments.tables.cells import TABLES, Cell, Choice
from experiments.tables.presets import PRESETS
from interflow_jax.ops import memory

DECIDED = ("method", "dataset", "seed", "seeds", "depth", "out")
"""Flags of the main command that the tables decide."""

NAMED = "1 to 7, branches, longer or weights"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.reproduce", *arguments])
    parser = _parser()
    flags = vars(parser.parse_args(arguments))
    number, figure, out = flags.pop("table"), flags.pop("figure"), Path(flags.pop("out"))
    dry_run, only_report = flags.pop("dry_run"), flags.pop("report")
    workers, cpus = flags.pop("workers"), flags.pop("cpus")
    if (number is None) == (figure is None):
        parser.error(f"give either --table={NAMED}, or --figure=4")
    if cpus is not None and not (workers and cpus > 0):
        parser.error(f"--cpus={cpus}: choose a number above 0, with --workers")
    number = number or figure
    if number == "2":
        print(table_2())
        return 0
    narrowed = {name: flags.pop(name) for name in ("preset", "datasets", "methods", "depths")}
    choice = Choice(**narrowed, seeds=flags.pop("seeds"), overrides=flags)
    report = partial(_report, number, out, _recorded(arguments), choice.preset)

    def body() -> int:
        made = _cells(number, choice)
        runs = [planned for cell in made for planned in cell.runs(out / "runs")]
        if dry_run:
            work.check_without_data(runs)
            print(listing(runs))
            return 0
        failed = []
        if not only_report:
            cluster = _cluster(cpus) if workers and planning.unfinished(runs) else {}
            try:
                failed = work.carry_out(TABLES[number].title, runs, out, **cluster)
            except StoppedError:
                if planning.finished(runs):
                    report(made)
                raise
        if planning.finished(runs):
            report(made)
        elif not failed:
            raise ValueError(f"--report: no run of this table is finished in {out / 'runs'}")
        return 1 if failed else 0

    return work.exit_status("reproduce", command, body)


def _recorded(arguments: list[str]) -> str:
    """The command that makes a report, wherever its runs are trained."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--workers")
    parser.add_argument("--cpus")
    kept = parser.parse_known_args(arguments)[1]
    return shlex.join(["python", "-m", "experiments.reproduce", *kept])


def _report(number: str, out: Path, command: str, preset: str, made: list[Cell]) -> None:
    """Writes the table's report, and says what of an earlier one it no longer has."""
    file = out / f"{cells.stem(number)}.json"
    earlier = _reported(file)
    writable(out)
    written = report.write(number, made, out / "runs", out, command, preset)
    print(f"wrote {', '.join(map(str, written))}", flush=True)
    gone = earlier.keys() - _reported(file).keys()
    if gone:
        print(
            f"{len(gone)} finished run(s) of the report before are not in this one, which names "
            f"fewer; to have them back: {earlier[min(gone)]} --report"
        )


def _reported(file: Path) -> dict[str, str]:
    """The runs of a report by their commands, each with the report's command; {} without one."""
    try:
        report = json.loads(file.read_text())
        command = str(report["command"])
        return {run["command"]: command for cell in report["cells"] for run in cell["runs"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _parser():
    parser = configuration.parser(
        "reproduce",
        "Trains what a table of the paper needs and reports it beside the paper's figures: OUT/\n"
        "tableN.md, .json and pictures, from run folders in OUT/runs. Finished runs are skipped,\n"
        "an interrupted one goes on. A report holds what its command names, and replaces the\n"
        "one before.",
        "tables:\n"
        + "\n".join(f"  {number:<8}  {table.title}" for number, table in TABLES.items())
        + "\n  2         Table II: the methods\n\npresets:\n"
        + "\n".join(f"  {name:<7}{_in_flags(values)}" for name, values in PRESETS.items())
        + "\n\nexamples:\n"
        "  python -m experiments.reproduce --table=3 --dry_run\n"
        "  python -m experiments.reproduce --table=3 --datasets=cifar10 --seeds=0,1\n"
        "  python -m experiments.reproduce --table=6 --depths=60,100 --epochs=10\n"
        "  python -m experiments.reproduce --figure=4 --report\n"
        "  python -m experiments.reproduce --table=3 --preset=paper --workers=ray\n"
        "\nworkers:\n"
        "  ray  one run a GPU of a Ray cluster, without GPUs one for some CPUs; the cluster is\n"
        "       $RAY_ADDRESS, else one that runs on this machine or is started there. Other\n"
        "       machines need the same Python environment and, under the same paths, this\n"
        "       checkout, OUT and the data (a shared filesystem). A run whose worker dies goes on\n"
        "       from its checkpoint in another. Ctrl-C saves what trains first; needs '.[ray]'.\n",
    )
    parser.add_argument("--table", choices=sorted([*TABLES, "2"]), metavar="N", help=NAMED)
    parser.add_argument("--figure", choices=["4"], metavar="4", help="4, of Table IV's runs")
    parser.add_argument("--preset", default="cpu", choices=PRESETS, help="below (default: cpu)")
    for name, parse, default in (
        ("datasets", configuration.names, "the table's"),
        ("methods", configuration.names, "the table's"),
        ("depths", configuration.integers, "the table's"),
        ("seeds", configuration.integers, "the table's number of them, from 0 on"),
    ):
        parser.add_argument(f"--{name}", type=parse, help=f"as a,b,c (default: {default})")
    parser.add_argument("--dry_run", action="store_true", help="list the runs, with an estimate")
    parser.add_argument("--report", action="store_true", help="train nothing, gather what is there")
    parser.add_argument("--workers", choices=["ray"], help="train at once, as below")
    parser.add_argument(
        "--cpus",
        type=int,
        help="of a run on --workers, at most a machine's (default: 4, or 1 beside a GPU)",
    )
    parser.add_argument("--out", default="results", help="folder of reports (default: results)")
    group = parser.add_argument_group("flags of experiments.run, in place of the preset's values")
    of_table = {"downsample": "the table's", "fc": "the table's"}
    configuration.add_flags(group, DECIDED, presets.DECIDED | of_table)
    return parser


def _in_flags(values: dict[str, Any]) -> str:
    """A preset's values in words."""
    given = " ".join(f"--{name}={value}" for name, value in values.items())
    return given or "the paper's, IV-B"


def _cluster(cpus: int | None) -> dict[str, Any]:
    """How `work.carry_out` does runs on Ray; raises ValueError without Ray."""
    try:
        from experiments.sweep import ray_workers
    except ImportError as error:
        raise ValueError(f"--workers=ray needs pip install '.[ray]' ({error})") from error
    # Before anything asks for devices: JAX would take most of a GPU's memory for this process,
    # which trains nothing.
    jax.config.update("jax_platforms", "cpu")
    return {"connect": ray_workers.connect, "work": partial(ray_workers.work, cpus=cpus)}


def _cells(number: str, choice: Choice) -> list[Cell]:
    """The table's cells; raises ValueError for a method or a depth that it cannot have."""
    known = (*ij.METHODS, *ij.BASELINES)
    for method in choice.methods or ():
        if method not in known:
            raise ValueError(f"--methods={method}: choose from {', '.join(known)}")
    made = cells.cells(number, choice)
    for cell in made:
        for seed in cell.seeds:
            Configuration(**{**vars(cell.flags), "seed": seed}).check()
    return made


def listing(runs: list[Planned]) -> str:
    """What would run, and how long it will take by what was measured."""
    todo = planning.unfinished(runs)
    seconds = time_left.seconds_left(runs)
    lines = []
    for planned in todo:
        expected = seconds[planned.folder.path]
        known = "not measured yet" if expected is None else f"about {duration(expected)}"
        lines.append(f"{planned.command()}  # {known}")
    measured = [value for value in seconds.values() if value is not None]
    total = f", about {duration(sum(measured))}" if measured and len(measured) == len(todo) else ""
    lines.append(f"{len(runs)} runs, {len(runs) - len(todo)} finished, {len(todo)} to do{total}")
    return "\n".join(lines)


def table_2() -> str:
    """Table II, from the methods as the code has them."""
    lines = [
        "| method | branches after convolutions | fusion | initial weights |",
        "| --- | --- | --- | --- |",
    ]
    for name, method in {**ij.METHODS, **ij.BASELINES}.items():
        taps = ", ".join(map(str, method.taps))
        initial: Any = method.initial_weights
        start = "Xavier" if initial is None else ", ".join(f"{weight:g}" for weight in initial)
        if name in ij.BASELINES:
            start = "the last branch alone (a baseline, not the paper's)"
        lines.append(f"| {name} | {taps} | {method.fusion} | {start} |")
    return "\n".join(lines)


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
