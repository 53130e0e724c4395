"""Reproduces the paper's tables and its figure of results.

python -m experiments.reproduce --table=3 --datasets=cifar10 --methods=Normal,S3
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.sweep import commands, record, work
from experiments.tables import findings, plan, presets, report, runs
from experiments.tables.table3 import table_2
from interflow_jax.cli import depths
from interflow_jax.cli.config import RunConfig, fields
from interflow_jax.cli.files import writable
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.main import guarded
from interflow_jax.cli.parser import Parser, add_config, integers, names
from interflow_jax.cli.stopping import StoppedError, StopSignals
from interflow_jax.ops.memory import keep_freed_memory
from interflow_jax.saved_run import load_run

OUT = "runs/tables"
_ELSEWHERE = ("workers", "cpus", "runs_per_gpu")  # say where runs are trained
_OF_TABLES = ("method", "dataset", "seed", "depth", "layout", "recipe")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return guarded("reproduce", _command(arguments), lambda: _reproduce(arguments))


def _command(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "experiments.reproduce", *arguments])


def _reproduce(arguments: Sequence[str]) -> int:
    tables = plan.tables()
    parser = _parser(tables)
    given, defaults = (vars(parser.parse_args(some)) for some in (arguments, []))
    name, figure, out = given.pop("table"), given.pop("figure"), Path(given.pop("out")).expanduser()
    only_report, dry_run = given.pop("report"), given.pop("dry_run")
    if given.pop("claims"):
        others = {key for key, value in given.items() if value != defaults.get(key)}
        if others | {key for key in (name, figure, only_report, dry_run) if key}:
            parser.error("--claims takes --out alone")
        writable(out)
        print(findings.write(partial(_planned, parser, tables, runs.load(out)), out))
        return 0
    workers, cpus, per_gpu = map(given.pop, _ELSEWHERE)
    if (name is None) == (figure is None):
        parser.error(f"give either --table=N, of {', '.join([*tables, '2'])}, or --figure=4")
    for flag, value in (("cpus", cpus), ("runs_per_gpu", per_gpu)):
        if value is not None and not (workers == "ray" and value > 0):
            parser.error(f"--{flag}={value}: choose a number above 0, with --workers=ray")
    if name == "2":
        print(table_2())
        return 0
    table = tables[name or figure]
    wanted = partial(_wanted, table, given, unchosen=not only_report)
    configs = [*wanted(runs.load(out))["config"]]
    if dry_run:
        if not hasattr(table, "prepare"):  # else its data may not be there yet
            work.check(configs)
        print(commands.listing(configs, out))
        return 0
    failed, stopped = [], None
    if not only_report:
        if hasattr(table, "prepare"):
            table.prepare(given["datasets"] or table.DATASETS)
        try:
            failed = work.carry_out(table.TITLE, configs, out, workers, cpus, per_gpu or 1)
            _measure(table, configs, out)
        except StoppedError as error:
            stopped = error
    planned = wanted(runs.load(out))
    if not runs.finished(planned).empty:
        _report(table, planned, out, given["preset"], arguments)
    elif only_report:
        raise ValueError(f"--report: no run of this table is finished in {out}")
    if stopped:
        raise stopped
    return 1 if failed else 0


def _wanted(
    table: ModuleType, given: dict[str, Any], known: runs.Frame, unchosen: bool
) -> runs.Frame:
    """The runs of a table for given flags (see `plan.plan`)."""
    given = dict(given)
    axes = {axis: values for axis in plan.AXES if (values := given.pop(axis)) is not None}
    for name, default in (("datasets", table.DATASETS), ("seeds", table.SEEDS)):
        given[name] = given[name] or default
    return plan.plan(table, known, axes=axes, unchosen=unchosen, **given)


def _planned(
    parser: Parser, tables: dict[str, ModuleType], known: runs.Frame, flags: str
) -> tuple[ModuleType, runs.Frame]:
    """A table of claims.json and its runs, as far as rates are chosen."""
    given = vars(parser.parse_args(shlex.split(flags)))
    table = tables[given.pop("table")]
    for name in ("figure", "out", "report", "dry_run", "claims", *_ELSEWHERE):
        del given[name]
    return table, _wanted(table, given, known, unchosen=False)


def _measure(table: ModuleType, configs: list[RunConfig], out: Path) -> None:
    """Adds to finished runs' folders what a table measures of them, once, where checkpoints are."""
    if not hasattr(table, "measure"):
        return
    done = runs.finished(runs.match(runs.load(out), configs))
    try:
        with StopSignals() as stop:
            for name, config in zip(done["run"], done["config"], strict=True):
                folder = RunFolder(out / "runs" / name)
                file = f"{table.MEASURED}.json"
                if not (folder.path / file).exists() and folder.has_checkpoints():
                    stop.check()
                    print(f"measuring {table.MEASURED} of {folder.path} ...", flush=True)
                    run = load_run(folder.path)
                    dataset = depths.load(run, config.places.data_dir)
                    folder.write_json(file, table.measure(run, dataset))
    finally:
        record.write(out)


def _report(
    table: ModuleType, planned: runs.Frame, out: Path, preset: str, arguments: Sequence[str]
) -> None:
    """Writes and prints a table's report, and says which runs of the one before it has no more."""
    writable(out)
    record.write(out)
    name, note = plan.stem(table), getattr(table, "NOTE", "")
    earlier = report.reported(out / f"{name}.json")
    command = _command(_kept(arguments))
    facts = {"title": table.TITLE, "command": command, "preset": preset, "note": note}
    print(report.write(name, facts, planned, table.report(planned), out), flush=True)
    print(f"written: {out / name}.md, .json and pictures; the runs are in {out / 'runs'}")
    gone = earlier.keys() - report.reported(out / f"{name}.json").keys()
    if gone:
        print(
            f"{len(gone)} finished run(s) of the report before are not in this one, which names "
            f"fewer; to have them back: {earlier[min(gone)]} --report"
        )


def _kept(arguments: Sequence[str]) -> list[str]:
    """A report's flags, without those that say where its runs are trained."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--report", action="store_true")
    for flag in _ELSEWHERE:
        parser.add_argument(f"--{flag}")
    return parser.parse_known_args(arguments)[1]


def _workers(text: str) -> int | str:
    if text == "ray" or (text.isdigit() and int(text) > 0):
        return text if text == "ray" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor ray")


def _parser(tables: dict[str, ModuleType]) -> Parser:
    parser = Parser(
        "reproduce",
        "Trains what a table needs and reports it, beside the paper's figures where it has any:\n"
        "OUT/NAME.md, .json and pictures. OUT/runs.jsonl is the record of finished runs, which\n"
        "are skipped; one that was interrupted goes on in its folder in OUT/runs. A report holds\n"
        "what its command names, and replaces the one before.",
        "tables:\n"
        + "\n".join(f"  {name:<8}  {table.TITLE}" for name, table in tables.items())
        + "\n  2         Table II: the methods\n\npresets:\n"
        + "\n".join(f"  {name:<7}{presets.in_flags(name)}" for name in presets.PRESETS)
        + "\n\nexamples:\n"
        "  python -m experiments.reproduce --table=3 --dry_run\n"
        "  python -m experiments.reproduce --table=3 --datasets=cifar10 --seeds=0,1\n"
        "  python -m experiments.reproduce --table=6 --depths=60,100 --epochs=10\n"
        "  python -m experiments.reproduce --figure=4 --report --out=results\n"
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
        prefix="python -m experiments.",
    )
    add = parser.add_argument
    add("--table", choices=[*tables, "2"], metavar="N", help="below")
    add("--figure", choices=["4"], metavar="4", help="4, of Table IV's runs")
    default = presets.DEFAULT
    add("--preset", default=default, choices=presets.PRESETS, help=f"below (default: {default})")
    lists = {"datasets": names, "seeds": integers, **plan.AXES}
    for flag, parse in lists.items():
        add(f"--{flag}", type=parse, metavar="A,B,...", help="in place of the table's")
    add("--dry_run", action="store_true", help="list the runs, with an estimate")
    about = "write OUT/README.md, every claim of the paper and what the finished runs say of it"
    add("--claims", action="store_true", help=about)
    add("--report", action="store_true", help="train nothing, report what is finished")
    add("--workers", type=_workers, help="train at once, as below (default: one after another)")
    add("--cpus", type=int, help="of a run on --workers=ray (default: 4, or 1 beside a GPU)")
    per_gpu = "runs that share a GPU and its memory on --workers=ray (default: 1)"
    add("--runs_per_gpu", type=int, metavar="N", help=per_gpu)
    add("--out", default=OUT, help=f"folder of reports and runs (default: {OUT})")
    left_out = (*_OF_TABLES, *(fields("places") - {"data_dir", "checkpoint_minutes"}))
    add_config(parser, left_out, decided="the preset's or the table's")
    return parser


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
