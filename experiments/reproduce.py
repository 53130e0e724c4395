"""Reproduces the paper's tables and its figure of results.

python -m experiments.reproduce --table=3 --datasets=cifar10 --methods=Normal,S3
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import interflow_jax as ij
from experiments.cli import configuration
from experiments.cli.configuration import HOSTS, integers, names, numbers
from experiments.runs.files import writable
from experiments.runs.stopping import StoppedError
from experiments.sweep import time_left, work
from experiments.sweep.record import Record
from experiments.tables import frame, presets, report, study
from experiments.tables.index import TABLES
from experiments.tables.methods import table_2
from experiments.tables.table import Choice, Table
from interflow_jax.ops import memory

AXES = {
    "datasets": ("dataset", names, "a,b,c"),
    "methods": ("method", names, "a,b,c"),
    "depths": ("depth", integers, "7,9,11"),
    "layouts": ("layout", names, "spread,append"),
    "learning_rates": ("learning_rate", numbers, "1e-3,1e-2"),
    "candidates": (study.CANDIDATE, study.candidates, "WIDTHxEXAMPLESxEPOCHS,..."),
}
"""Flags that give a table's axes: the axis, how its values are read, and their form in words."""

DECIDED = ("method", "dataset", "seed", "seeds", "depth", "out", *HOSTS)
"""Flags of the main command that the tables decide, or that a sweep has no use for."""

DECIDED_BY_SOME = (
    *("downsample", "fc", "layout", "taps", "fusion", "auxiliary_mean", "backbone"),
    *("learning_rate", "optimizer", "schedule"),
)
"""Flags of the main command that some tables decide, where the command line does not."""

NAMED = f"{', '.join(sorted([*TABLES, '2']))}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.reproduce", *arguments])
    parser = _parser()
    flags = vars(parser.parse_args(arguments))
    name, figure, out = flags.pop("table"), flags.pop("figure"), Path(flags.pop("out"))
    dry_run, only_report = flags.pop("dry_run"), flags.pop("report")
    workers, cpus, per_gpu = (flags.pop(name) for name in ("workers", "cpus", "runs_per_gpu"))
    if (name is None) == (figure is None):
        parser.error(f"give either --table=N, of {NAMED}, or --figure=4")
    if cpus is not None and not (workers == "ray" and cpus > 0):
        parser.error(f"--cpus={cpus}: choose a number above 0, with --workers=ray")
    if per_gpu is not None and not (workers == "ray" and per_gpu > 0):
        parser.error(f"--runs_per_gpu={per_gpu}: choose a number above 0, with --workers=ray")
    if name == "2":
        print(table_2())
        return 0
    table = TABLES[name or figure]
    given = {axis: flags.pop(flag) for flag, (axis, _, _) in AXES.items()}
    axes = {axis: values for axis, values in given.items() if values is not None}
    for flag, (axis, _, _) in AXES.items():
        if axis in axes and axis in table.decides:
            parser.error(f"--{flag}: the table {table.name} decides it; leave it out")
    choice = Choice(flags.pop("preset"), axes, flags.pop("seeds"), overrides=flags)

    def body() -> int:
        known = (*ij.METHODS, *ij.BASELINES)
        for method in axes.get("method", ()):
            if method not in known:
                raise ValueError(f"--methods={method}: choose from {', '.join(known)}")
        record = Record(out)
        narrowed = table.narrow(choice, record, out)
        runs = frame.planned(table.cells(narrowed), table.run_seeds(narrowed), out)
        if table.note and not only_report:
            print(" ".join(table.note.split()), flush=True)
        if dry_run:
            work.check_without_data(runs)
            print(time_left.listing(runs, record))
            return 0
        failed, stopped = [], None
        if not only_report:
            try:
                failed = work.carry_out(
                    *(table.title, runs, record, out, workers, cpus, per_gpu or 1)
                )
                for run in record.finished(runs):
                    table.measure(run)
                record = Record(out)  # with what was measured
            except StoppedError as error:
                stopped = error
        if record.finished(runs):
            _report(table, narrowed, record, out, _recorded(arguments))
        elif only_report:
            raise ValueError(f"--report: no run of this table is finished in {out}")
        if stopped:
            raise stopped
        return 1 if failed else 0

    return work.exit_status("reproduce", command, body)


def _workers(text: str) -> int | str:
    if text == "ray" or (text.isdigit() and int(text) > 0):
        return text if text == "ray" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor ray")


def _recorded(arguments: list[str]) -> str:
    """The command that makes a report, without the flags that say where its runs are trained."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--workers")
    parser.add_argument("--cpus")
    parser.add_argument("--runs_per_gpu")
    kept = parser.parse_known_args(arguments)[1]
    return shlex.join(["python", "-m", "experiments.reproduce", *kept])


def _report(table: Table, choice: Choice, record: Record, out: Path, command: str) -> None:
    """Writes the table's report, and says which runs of an earlier one it no longer has."""
    file = out / f"{table.name}.json"
    earlier = _reported(file)
    writable(out)
    record.write()
    written = report.write(table, choice, record, out, command)
    print(f"wrote {', '.join(map(str, written))}", flush=True)
    gone = earlier.keys() - _reported(file).keys()
    if gone:
        print(
            f"{len(gone)} finished run(s) of the report before are not in this one, which names "
            f"fewer; to have them back: {earlier[min(gone)]} --report"
        )


def _reported(file: Path) -> dict[str, str]:
    """The names of a report's runs, each with the report's command; {} without a report."""
    try:
        report = json.loads(file.read_text())
        return {run: report["command"] for cell in report["cells"] for run in cell["runs"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _parser() -> argparse.ArgumentParser:
    parser = configuration.parser(
        "reproduce",
        "Trains what a table of the paper needs and reports it beside the paper's figures: OUT/\n"
        "tableN.md, .json and pictures. OUT/runs.jsonl is the record of all finished runs, which\n"
        "are skipped; one that was interrupted goes on in its folder in OUT/runs. A report holds\n"
        "what its command names, and replaces the one before.",
        "tables:\n"
        + "\n".join(f"  {name:<8}  {table.title}" for name, table in TABLES.items())
        + "\n  2         Table II: the methods\n\npresets:\n"
        + "\n".join(f"  {name:<7}{presets.in_flags(name)}" for name in presets.PRESETS)
        + "\n\nexamples:\n"
        "  python -m experiments.reproduce --table=3 --dry_run\n"
        "  python -m experiments.reproduce --table=3 --datasets=cifar10 --seeds=0,1\n"
        "  python -m experiments.reproduce --table=6 --depths=60,100 --epochs=10\n"
        "  python -m experiments.reproduce --figure=4 --report\n"
        "  python -m experiments.reproduce --table=3 --learning_rates=1e-3,1e-2\n"
        "  python -m experiments.reproduce --table=3 --preset=paper --workers=ray\n"
        "\nworkers:\n"
        "  N    runs in N processes of this machine, which share its cores\n"
        "  ray  one run per GPU of a Ray cluster (or --runs_per_gpu: batches of 64 leave a large\n"
        "       GPU idle), without GPUs one for some CPUs; the cluster is\n"
        "       $RAY_ADDRESS, else one that runs on this machine or is started there. Other\n"
        "       machines need the same Python environment and, under the same paths, this\n"
        "       checkout, OUT and the data (a shared filesystem); needs '.[ray]'.\n"
        "  A run whose worker dies goes on from its checkpoint in another. Ctrl-C saves what\n"
        "  trains first. A run prints to output.txt in its folder.\n",
    )
    table = parser.add_argument
    table("--table", choices=sorted([*TABLES, "2"]), metavar="N", help="below")
    table("--figure", choices=["4"], metavar="4", help="4, of Table IV's runs")
    default = presets.DEFAULT
    table("--preset", default=default, choices=presets.PRESETS, help=f"below (default: {default})")
    for flag, (_, parse, form) in AXES.items():
        table(f"--{flag}", type=parse, help=f"as {form} (default: the table's)")
    table("--seeds", type=integers, help="as 0,1,2 (default: the table's)")
    table("--dry_run", action="store_true", help="list the runs, with an estimate")
    table("--report", action="store_true", help="train nothing, report what is finished")
    table("--workers", type=_workers, help="train at once, as below (default: one after another)")
    table("--cpus", type=int, help="of a run on --workers=ray (default: 4, or 1 beside a GPU)")
    per_gpu = "runs that share a GPU and its memory on --workers=ray (default: 1)"
    table("--runs_per_gpu", type=int, metavar="N", help=per_gpu)
    table("--out", default="results", help="folder of reports (default: results)")
    group = parser.add_argument_group("flags of experiments.run, in place of the preset's values")
    of_table = dict.fromkeys(DECIDED_BY_SOME, "the table's")
    configuration.add_flags(group, DECIDED, presets.DECIDED | of_table)
    return parser


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
