"""Contenders in turns: each in a process of its own, which answers the command's questions.

A question is a function of the contender's step; the process calls it and sends back what it
returns. A contender that fails, or whose process dies, is out; the others go on.
"""

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from experiments.timing.contenders import Contender, Network, Step
from experiments.timing.profile_summary import profile

SECONDS_A_TURN = 1.0  # a contender takes as many steps at once as fit, at least one
PAUSE_SECONDS = 0.3  # until the threads of a contender have stopped waiting actively


def measure(
    network: Network,
    contenders: dict[str, Contender],
    turns: int,
    trace: str | None = None,
) -> dict[str, Any]:
    """Lets contenders take turns on a network.

    Args:
      network: that they train.
      contenders: by name; the one named "ours" is profiled after the turns.
      turns: of each.
      trace: the folder that the profile's trace goes to; None: nowhere.

    Returns:
      JSON-able: the network, its FLOPs a step, the share of processor time that a hypervisor took
      away, and for every contender an `error` or `compile_seconds`, `batches` (that a step trains
      on), `step_seconds` (one figure a turn, the mean of the turn's steps), `peak_bytes` (of the
      process) and, of ours, the `profile` (see `profile_summary.summarize`, or an `error`).
    """
    with contextlib.ExitStack() as stack:
        peers: dict[str, _Peer] = {}
        counts: dict[str, int] = {}
        results: dict[str, dict[str, Any]] = {}

        @contextlib.contextmanager
        def alone(name: str) -> Iterator[None]:
            """What fails in it takes this contender out."""
            try:
                yield
            except ContenderFailed as failure:
                results[name] = {"error": str(failure)}
                peers.pop(name, None)

        for name, contender in contenders.items():
            with alone(name):
                peer = stack.enter_context(_started(contender, network))
                seconds, batches = peer.answer()
                counts[name] = max(1, int(SECONDS_A_TURN / peer.ask(_seconds, 1)))
                peers[name] = peer
                results[name] = {
                    "compile_seconds": seconds,
                    "batches": batches,
                    "step_seconds": [],
                }
        before = processor_time()
        for _ in range(turns):
            for name, peer in list(peers.items()):
                with alone(name):
                    seconds = peer.ask(_seconds, counts[name]) / counts[name]
                    results[name]["step_seconds"].append(seconds)
                time.sleep(PAUSE_SECONDS)
        taken, total = (b - a for a, b in zip(before, processor_time(), strict=True))
        for name, peer in list(peers.items()):
            with alone(name):
                results[name]["peak_bytes"] = peer.ask(_peak_bytes)
        if "ours" in peers:
            try:
                results["ours"]["profile"] = peers["ours"].ask(profile, trace)
            except ContenderFailed as failure:
                results["ours"]["profile"] = {"error": str(failure)}
    return {
        "network": network._asdict(),
        "description": str(network),
        "flops": network.flops(),
        "taken_by_hypervisor": taken / total if total else 0.0,
        "contenders": results,
    }


def processor_time() -> tuple[float, float]:
    """Ticks that a hypervisor gave to others, and all, since the start; zeros where unknown."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0.0, 0.0
    return ticks[7], sum(ticks[:8])


class ContenderFailed(Exception):
    """Says in a line what a contender raised, or how its process ended."""


class _Peer(NamedTuple):
    """A contender's process, and the pipe to it."""

    process: BaseProcess
    pipe: Connection

    def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """What `question(step, *arguments)` returns there.

        Raises:
          ContenderFailed: as `answer`.
        """
        with contextlib.suppress(OSError):  # the answer says it
            self.pipe.send((question, arguments))
        return self.answer()

    def answer(self) -> Any:
        """What the process sends next.

        Raises:
          ContenderFailed: if it is an error, or there will be none.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(10)
            status = self.process.exitcode or 0
            cause = f"signal {-status}" if status < 0 else f"status {status}"
            raise ContenderFailed(f"its process ended ({cause})") from None
        if isinstance(answer, str):
            raise ContenderFailed(answer)
        return answer


@contextlib.contextmanager
def _started(contender: Contender, network: Network) -> Iterator[_Peer]:
    """A contender's process, which ends with the context."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contender, network))
    process.start()
    theirs.close()
    try:
        yield _Peer(process, ours)
    finally:
        with contextlib.suppress(OSError):  # it is dead already
            ours.send(None)
        process.join(10)
        process.kill()


def _serve(pipe: Connection, contender: Contender, network: Network) -> None:
    """A contender's process: makes its step, then answers questions until it gets None.

    Sends the seconds of making and compiling and the batches of a step, then every answer; in
    place of any of them the first line of an error, and ends.
    """
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            start = time.perf_counter()
            step = contender(network)
            step.take()
            pipe.send((time.perf_counter() - start, step.batches))
            step.take()  # the first after compiling still allocates
            while asked := pipe.recv():
                question, arguments = asked
                pipe.send(question(step, *arguments))
        except Exception as error:  # it is for the parent to say
            pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _seconds(step: Step, steps: int) -> float:
    """The time of several steps."""
    start = time.perf_counter()
    for _ in range(steps):
        step.take()
    return time.perf_counter() - start


def _peak_bytes(step: Step) -> int:
    """The most memory that the process had."""
    del step
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
