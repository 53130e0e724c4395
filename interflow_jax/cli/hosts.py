"""One run on several hosts: a process on each, all of which do the same in the same order.

The first process decides and writes; the others touch none of the run's files. If one of them fails
in `everywhere` or `once`, all fail. A process that fails elsewhere, or dies, ends the others: what
they wait for never comes.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from interflow_jax.cli import stopping
from interflow_jax.cli.files import LockedError
from interflow_jax.cli.flags import Places

START_SECONDS = 300  # by then all processes must have joined; JAX's default
DEATH_SECONDS = 30  # a process that gives no sign of life for this long is dead
_SMALLEST = 1024  # bytes: messages are padded to this times a power of two, for few programs
_SHARED = "raised on every process"

Value = TypeVar("Value")


def alone() -> bool:
    """Whether this process trains by itself; does not touch the devices if it was never joined."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Whether this process writes."""
    return alone() or jax.process_index() == 0


@contextlib.contextmanager
def everywhere() -> Iterator[None]:
    """Raises on all processes what the block raises on one, once all have left it."""
    if alone():
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = multihost_utils.process_allgather(np.array(failure is not None))
    if failed.any():
        name, arguments = _sent(_in_words(failure), int(failed.argmax()))
        error = _RAISED.get(name, RuntimeError)(*arguments)
        error.add_note(_SHARED)
        raise error from failure


def once(function: Callable[[], Value]) -> Value:
    """Calls a function on the first process; returns or raises its outcome on all.

    What it returns is sent as JSON: tuples arrive as lists.
    """
    if alone():
        return function()
    value: Any = None
    with everywhere():
        if is_first():
            value = function()
    return _sent(value, 0)


def same(arrays: Any) -> Any:
    """The first process's arrays on all: a pytree of equal shapes and dtypes everywhere."""
    if alone():
        return arrays
    arrays = jax.tree.map(np.asarray, arrays)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays, is_first()))


def _sent(value: Any, source: int) -> Any:
    """Sends the JSON-able value that one process has to all."""
    is_source = jax.process_index() == source
    content = np.frombuffer(json.dumps(value).encode() if is_source else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(content)), is_source))
    padded = np.zeros(_SMALLEST * 2 ** max(0, (size - 1) // _SMALLEST).bit_length(), np.uint8)
    padded[: len(content)] = content
    content = multihost_utils.broadcast_one_to_all(padded, is_source).tobytes()
    return json.loads(content[:size])


_RAISED: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ValueError, LockedError, stopping.StoppedError, *stopping.FAILURES)
}
"""Errors that arrive on other processes as they are; any other as a RuntimeError."""


def _in_words(error: Exception | None) -> list[Any]:
    """An error as JSON: the name of its type, and what it was made from."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _RAISED]
    if isinstance(error, stopping.StoppedError):
        return [kinds[0], list(error.args)]
    if not kinds:
        return ["RuntimeError", [f"{type(error).__name__}: {error}"]]
    return [kinds[0], [str(error)]]


class _LastWords:
    """A shell that outlives this process, and then prints the last line it got on standard error.

    When a process loses another one, JAX ends it below Python's reach.
    """

    def __init__(self) -> None:
        # The signals that end a job go to all of its processes.
        program = "trap '' HUP INT TERM; while read -r line; do last=$line; done; "
        program += '[ -z "$last" ] || echo "$last" >&2'
        self._shell = subprocess.Popen(["sh", "-c", program], stdin=subprocess.PIPE)

    def are(self, line: str) -> None:
        """Replaces the line."""
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(f"{' '.join(line.split())}\n".encode())
            self._shell.stdin.flush()

    def withdraw(self) -> None:
        """Ends the shell, which then prints nothing."""
        if self._shell.poll() is None:
            self.are("")
            self._shell.communicate()


@contextlib.contextmanager
def joined(places: Places, detect: bool) -> Iterator[None]:
    """Joins this process to those that train the same run, if there are any.

    Without flags that say so, `detect` looks for a cluster, such as Slurm's, that started it.
    """
    _check(places)
    if places.processes == 1 or (places.processes is None and not detect):
        yield
        return
    words = _LastWords()
    words.are(
        f"run: stopped: not all processes came within {START_SECONDS} s; start one on every host, "
        "each with the same --coordinator and --processes, or each by the cluster's launcher"
    )
    try:
        if not _initialize(places):
            words.withdraw()
            yield
            return
        again = "to go on, run the same command again on every host"
        words.are(f"run: stopped: this process or another one died; {again}")
        count, me = jax.process_count(), jax.process_index()
        try:
            with everywhere():
                if places.processes not in (None, count):
                    raise ValueError(
                        f"--processes={places.processes} on process {me}: {count} came; give every "
                        "process the same number"
                    )
            with contextlib.ExitStack() as silence:
                if me > 0:
                    nowhere = silence.enter_context(open(os.devnull, "w"))
                    silence.enter_context(contextlib.redirect_stdout(nowhere))
                yield
        except BaseException as error:
            if alone() or _SHARED in getattr(error, "__notes__", ()):
                raise
            if not isinstance(error, ValueError | RuntimeError | OSError | KeyboardInterrupt):
                traceback.print_exc()
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            words.are(f"run: stopped: process {me} of {count}: {reason}; {again}")
            sys.stdout.flush()
            os._exit(1)  # a normal exit would wait for the others, and they wait for this one
        finally:
            jax.distributed.shutdown()
    finally:
        words.withdraw()


def _check(places: Places) -> None:
    if places.processes is not None and places.processes < 1:
        raise ValueError(f"--processes={places.processes}: choose a number above 0")
    if places.processes in (None, 1):
        for name in ("coordinator", "process"):
            if (value := getattr(places, name)) is not None:
                raise ValueError(f"--{name}={value}: give --processes=N, 2 or more, with it")
        return
    if places.coordinator is None or not re.fullmatch(r".+:\d+", places.coordinator):
        raise ValueError(
            f"--coordinator={places.coordinator}: --processes={places.processes} needs the address "
            "of process 0 and a free port there, as 10.0.0.1:1234"
        )
    if places.process is None or not 0 <= places.process < places.processes:
        raise ValueError(
            f"--process={places.process}: --processes={places.processes} needs 0 to "
            f"{places.processes - 1}, another one on every host"
        )


def _initialize(places: Places) -> bool:
    """Waits for the other processes; returns whether there is a cluster at all."""
    # Its SIGTERM handler would replace ours, on which the processes agree.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            places.coordinator,
            places.processes,
            places.process,
            # Process 0 listens at the address that it was given, not on every interface.
            coordinator_bind_address=places.coordinator if places.process == 0 else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=DEATH_SECONDS,
        )
    except ValueError:
        if places.processes is not None:
            raise
        return False  # JAX found no cluster to take these values from
    except RuntimeError as error:
        hint = "" if places.processes else "; give --processes=1 to train on this host alone"
        raise ValueError(f"the processes could not be joined ({error}){hint}") from error
    return True
