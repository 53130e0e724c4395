"""One run on several hosts: a process on each, all of which do the same in the same order.

The first process decides and writes; the others touch none of the run's files. If one of them fails
in `everywhere` or `once`, all fail. A process that fails elsewhere, or dies, ends the others: what
they wait for never comes.
"""

import contextlib
import os
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.cli.configuration import Configuration

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
        error = _sent(failure, int(failed.argmax()))
        error.add_note(_SHARED)
        raise error from failure


def once(function: Callable[[], Value]) -> Value:
    """Calls a function on the first process; returns or raises its outcome on all."""
    if alone():
        return function()
    value: Any = None
    with everywhere():
        if is_first():
            value = function()
    return _sent(value, 0)


def _sent(value: Any, source: int) -> Any:
    """Sends the value that one process has to all."""
    is_source = jax.process_index() == source
    content = np.frombuffer(pickle.dumps(value) if is_source else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(content)), is_source))
    padded = np.zeros(_SMALLEST * 2 ** max(0, (size - 1) // _SMALLEST).bit_length(), np.uint8)
    padded[: len(content)] = content
    return pickle.loads(multihost_utils.broadcast_one_to_all(padded, is_source).tobytes())


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
def joined(flags: Configuration, detect: bool) -> Iterator[None]:
    """Joins this process to those that train the same run, if there are any.

    Args:
      flags: `coordinator`, `processes` and `process` are used.
      detect: without those flags, whether to look for a cluster such as Slurm's.

    Raises:
      ValueError: for invalid flags, or a number of processes that differs from the others'.
    """
    _check(flags)
    if flags.processes == 1 or (flags.processes is None and not detect):
        yield
        return
    words = _LastWords()
    words.are(
        f"run: stopped: not all processes came within {START_SECONDS} s; start one on every host, "
        "each with the same --coordinator and --processes, or each by the cluster's launcher"
    )
    try:
        if not _initialize(flags):
            words.withdraw()
            yield
            return
        again = "to go on, run the same command again on every host"
        words.are(f"run: stopped: this process or another one died; {again}")
        count, me = jax.process_count(), jax.process_index()
        try:
            with everywhere():
                if flags.processes not in (None, count):
                    raise ValueError(
                        f"--processes={flags.processes} on process {me}: {count} came; give every "
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


def _check(flags: Configuration) -> None:
    given = {"coordinator": flags.coordinator, "process": flags.process}
    if flags.processes is not None and flags.processes < 1:
        raise ValueError(f"--processes={flags.processes}: choose a number above 0")
    if flags.processes in (None, 1):
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"--{name}={value}: give --processes=N, 2 or more, with it")
        return
    if flags.coordinator is None or not re.fullmatch(r".+:\d+", flags.coordinator):
        raise ValueError(
            f"--coordinator={flags.coordinator}: --processes={flags.processes} needs the address "
            "of process 0 and a free port there, as 10.0.0.1:1234"
        )
    if flags.process is None or not 0 <= flags.process < flags.processes:
        raise ValueError(
            f"--process={flags.process}: --processes={flags.processes} needs 0 to "
            f"{flags.processes - 1}, another one on every host"
        )


def _initialize(flags: Configuration) -> bool:
    """Waits for the other processes; returns whether there is a cluster at all."""
    # Its SIGTERM handler would replace ours, on which the processes agree.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            flags.coordinator,
            flags.processes,
            flags.process,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=DEATH_SECONDS,
        )
    except ValueError:
        if flags.processes is not None:
            raise
        return False  # JAX found no cluster to take these values from
    except RuntimeError as error:
        hint = "" if flags.processes else "; give --processes=1 to train on this host alone"
        raise ValueError(f"the processes could not be joined ({error}){hint}") from error
    return True
