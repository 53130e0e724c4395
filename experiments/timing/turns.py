"""Runs contenders in turns, each in its own process, so that none disturbs another's memory."""

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax

from experiments.timing.contenders import Contender, Network, Step

SECONDS_PER_TURN = 1.0  # a contender takes as many steps in a turn as fit, at least one
PAUSE_SECONDS = 0.3  # until the threads of a contender have stopped busy-waiting
TRACED_STEPS = 5


def measure(
    network: Network, contenders: dict[str, Contender], turns: int, trace: str | None = None
) -> dict[str, Any]:
    """A network's part of benchmark.json; a contender that fails or dies is out, others go on.

    `step_seconds` has the mean step of every turn, `peak_bytes` is for the whole process. A trace
    of some of our steps, after the turns, goes to the folder `trace`.
    """
    results: dict[str, dict[str, Any]] = {}
    processes: dict[str, Executor] = {}

    def ask(name: str, question: Callable, *arguments: Any) -> Any:
        """The answer of a contender's process; on an error it is None, and the contender is out."""
        try:
            return processes[name].submit(_quietly, question, *arguments).result()
        except BrokenProcessPool:
            error = "its process ended"
        except Exception as raised:  # whatever its framework raises
            error = f"{type(raised).__name__}: {raised}".splitlines()[0]
        results[name] = {"error": error}
        del processes[name]
        return None

    with contextlib.ExitStack() as stack:
        for name, contender in contenders.items():
            pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            processes[name] = stack.enter_context(pool)
            if seconds := ask(name, _prepare, contender, network):
                results[name] = {"compile_seconds": seconds, "step_seconds": []}
        for _ in range(turns):
            for name in list(processes):
                if seconds := ask(name, _turn):
                    results[name]["step_seconds"].append(seconds)
                time.sleep(PAUSE_SECONDS)
        for name in list(processes):
            if peak := ask(name, _finish, trace if name == "ours" else None):
                results[name]["peak_bytes"] = peak
    facts = {"network": network._asdict(), "description": str(network)}
    return {**facts, "contenders": results}


_step: Step  # of the contender whose process this is
_takes: int  # how many times it is taken in a turn


def _quietly(question: Callable, *arguments: Any) -> Any:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return question(*arguments)


def _prepare(contender: Contender, network: Network) -> float:
    """Compiles the step; returns the seconds that it took."""
    global _step, _takes
    start = time.perf_counter()
    _step, _takes = contender(network), 1
    _step.take()
    seconds = time.perf_counter() - start
    _step.take()  # the first after compiling still allocates
    _takes = max(1, int(SECONDS_PER_TURN / (_turn() * _step.batches)))
    return seconds


def _turn() -> float:
    """The mean seconds of a step."""
    start = time.perf_counter()
    for _ in range(_takes):
        _step.take()
    return (time.perf_counter() - start) / (_takes * _step.batches)


def _finish(trace: str | None) -> int:
    """Peak memory in bytes, taken before the trace and so without it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if trace:
        with jax.profiler.trace(trace):
            for _ in range(TRACED_STEPS):
                _step.take()
    return peak
