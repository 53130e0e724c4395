"""Checks a sweep, works through it on this machine or on a Ray cluster, and records it."""

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax

from experiments.sweep import commands, pool, record
from experiments.sweep.pool import Failed
from interflow_jax.cli import data
from interflow_jax.cli.config import RunConfig
from interflow_jax.cli.files import writable
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.single import check_sizes
from interflow_jax.data.recipes import recipe

Workers = int | str | None
"""How many processes train at once; "ray" for a Ray cluster; None for one."""


def check(configs: Iterable[RunConfig]) -> None:
    """Checks all that can be wrong without opening or downloading any data."""
    for config in configs:
        config.check()
        size = recipe(config.data.dataset).train_examples
        if size is not None:
            check_sizes(config, size)
        else:
            data.check(config.data.dataset, config.places.data_dir)


def carry_out(
    title: str,
    configs: list[RunConfig],
    out: Path,
    workers: Workers = None,
    cpus: int | None = None,
    runs_per_gpu: int = 1,
) -> list[Failed]:
    """Trains the runs that OUT has not finished, records them, and returns those that failed.

    Raises:
      ValueError: for what `check` refuses, data that is missing or too small, or workers that
        there are not.
      StoppedError: after a signal, once every run has saved and ended.
    """
    check(configs)
    lines = record.read(out)
    todo = [commands.placed(run, out / "runs") for run in record.unfinished(configs, lines)]
    say, count = partial(print, flush=True), len(set(configs))
    if not todo:
        say(f"{title}: {count} runs, none to do")
        return []
    for run in todo:
        RunFolder(run.folder()).check(run.identity())
    processes = _pool(workers, cpus, runs_per_gpu)
    sizes = {}
    for run in todo:
        place = run.data.dataset, run.places.data_dir, run.data.image_size
        if place not in sizes:
            sizes[place] = len(data.load(*place).train)
        check_sizes(run, sizes[place])
    writable(out)

    def paces(runs: list[RunConfig]) -> commands.Paces:
        """What is known while these runs are to be done: also of those that finished meanwhile."""
        results = (RunFolder(run.folder()).result() for run in todo if run not in runs)
        return commands.Paces([*lines, *filter(None, results)])

    def left(runs: list[RunConfig]) -> str:
        return paces(runs).to_go(runs, min(processes.at_once, len(todo)))

    say(f"{title}: {count} runs, {len(todo)} to do; {left(todo)}")
    known = paces(todo)
    todo.sort(key=lambda run: -(known.seconds(run) or 0))
    try:
        return pool.work(todo, processes, say, left)
    finally:
        try:
            record.write(out)
        except (OSError, ValueError) as error:
            print(f"could not write {out / 'runs.jsonl'} ({error})", file=sys.stderr)


def _pool(workers: Workers, cpus: int | None, runs_per_gpu: int) -> pool.Pool:
    """Where runs train; raises ValueError if it cannot be had."""
    if workers != "ray":
        return pool.LocalPool(int(workers or 1))
    try:
        from experiments.sweep.ray_pool import RayPool
    except ImportError as error:
        raise ValueError(f"--workers=ray needs pip install '.[ray]' ({error})") from error
    # Before anything asks for devices: JAX would take most of a GPU's memory for this process,
    # which trains nothing.
    jax.config.update("jax_platforms", "cpu")
    return RayPool(cpus, runs_per_gpu)
