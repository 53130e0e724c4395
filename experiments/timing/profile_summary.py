"""Where a training step's time goes: its trace, summed by kind of operation."""

import contextlib
import tempfile
import time
from bisect import bisect
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import jax

from experiments.timing import compiled_program
from experiments.timing.compiled_program import KINDS, Program
from experiments.timing.contenders import Step

SECONDS = 5.0  # of steps in a trace, but ...
FEWEST, MOST = 5, 20  # ... so many
LONGEST = 10  # operations to name
STEP = "traced step"  # the event around each
CAUTION = (
    "XLA's CPU runtime runs operations at the same time, the large ones asynchronously: an instant "
    "counts in equal parts for all that had begun and not ended, whether they ran or waited for a "
    "processor. Figures are medians over the steps."
)


def profile(step: Step, folder: str | None) -> dict[str, Any]:
    """Takes a few steps under JAX's profiler.

    Args:
      step: of a contender that has a program.
      folder: where the trace goes; None: nowhere.

    Returns:
      See `summarize`.
    """
    with contextlib.ExitStack() as stack:
        folder = folder or stack.enter_context(tempfile.TemporaryDirectory())
        seconds = []
        with jax.profiler.trace(folder):
            while len(seconds) < FEWEST or (sum(seconds) < SECONDS and len(seconds) < MOST):
                start = time.perf_counter()
                with jax.profiler.StepTraceAnnotation(STEP, step_num=len(seconds)):
                    step.take()
                seconds.append(time.perf_counter() - start)
        assert step.compiled, "no program of XLA's to profile"
        program = compiled_program.parse(step.compiled().as_text() or "")
        return summarize(milliseconds(Path(folder)), program, seconds)


def milliseconds(folder: Path) -> dict[str, list[float]]:
    """What every execution of every operation took, by the newest trace in a folder."""
    trace = max(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    begun, ended, step_ends = [], {}, []
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                # An asynchronous operation's own event is only its start; one that begins with
                # "end: " and has the same number follows when its result is there.
                if event.name == STEP:
                    step_ends.append(event.start_ns + event.duration_ns)
                elif event.name.startswith("end: "):
                    ended[dict(event.stats)["_c"]] = event.start_ns
                elif "hlo_op" in (stats := dict(event.stats)):
                    returned = event.start_ns + event.duration_ns
                    begun.append((stats["hlo_op"], event.start_ns, returned, stats.get("_p")))
    # The thread that records an "end: " may have to wait for a processor after the step's end.
    step_ends.sort()
    spans = [
        (start, min(max(returned, ended.get(number, 0)), step_ends[bisect(step_ends, start)]))
        for _, start, returned, number in begun
    ]
    taken = defaultdict(list)
    for (name, *_), nanoseconds in zip(begun, shares(spans), strict=True):
        taken[name].append(nanoseconds / 1e6)
    return taken


def shares(spans: list[tuple[float, float]]) -> list[float]:
    """How long each span is when every instant is shared by the spans that it lies in.

    Args:
      spans: start and end of each.
    """
    starts = [(start, 1, number) for number, (start, _) in enumerate(spans)]
    ends = [(end, -1, number) for number, (_, end) in enumerate(spans)]
    shared = [0.0] * len(spans)
    since, open_spans, share_of_all = 0.0, 0, 0.0  # the last: of a span open from the first on
    for instant, change, number in sorted(starts + ends):
        if open_spans:
            share_of_all += (instant - since) / open_spans
        since, open_spans = instant, open_spans + change
        shared[number] = share_of_all - shared[number]
    return shared


def summarize(
    taken: dict[str, list[float]], program: Program, step_seconds: list[float]
) -> dict[str, Any]:
    """Sums the operations of some traced steps.

    Args:
      taken: milliseconds of every execution, by operation.
      program: that the operations are of.
      step_seconds: of each step of the trace.

    Returns:
      JSON-able, all in milliseconds a step: `step`, `kinds` (the sum of each) and the `longest`
      operations; `steps` is the number of them.
    """
    if not taken:
        raise ValueError("the profiler recorded no operation of the program")
    steps = len(step_seconds)
    each = {name: median(times) * len(times) / steps for name, times in taken.items()}
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, time_taken in each.items():
        kinds[program.kind(name)] += time_taken
    longest = sorted(each, key=lambda name: -each[name])[:LONGEST]
    return {
        "steps": steps,
        "step_ms": median(step_seconds) * 1e3,
        "kinds_ms": kinds,
        "longest": [
            {
                "operation": name,
                "kind": program.kind(name),
                "layer": program.layer(name),
                "ms": each[name],
            }
            for name in longest
        ],
    }


def markdown(summary: dict[str, Any]) -> list[str]:
    """The summary as two tables, line by line."""
    if "error" in summary:
        return [f"Our step's profile failed: {summary['error']}"]
    kinds, step = summary["kinds_ms"], summary["step_ms"]
    total = sum(kinds.values())
    shares = [f"{100 * time_taken / total:.0f}%" for time_taken in kinds.values()]
    return [
        f"Our step under the profiler ({summary['steps']} steps of {step:.1f} ms): its operations "
        f"sum up to {total:.1f} ms, {total / step:.2f} of it. {CAUTION}",
        "",
        f"| {' | '.join(kinds)} |",
        "| --- " * len(kinds) + "|",
        f"| {' | '.join(shares)} |",
        "",
        "| ms | operation | kind | layer |",
        "| --- | --- | --- | --- |",
        *(
            f"| {one['ms']:.2f} | {one['operation']} | {one['kind']} | {one['layer']} |"
            for one in summary["longest"]
        ),
    ]
