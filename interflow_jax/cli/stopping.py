"""What ends a run early: signals, losses that are not finite, too little memory."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax

from interflow_jax.checkpoints import UnreadableError, UnwritableError


class StoppedError(Exception):
    """A signal, given by its number, asked the run to stop.

    `unsaved` is why the state could not be saved, None if it was.
    """

    def __init__(self, signal: int, unsaved: str | None = None):
        super().__init__(signal, unsaved)
        self.signal, self.unsaved = signal, unsaved


class NonFiniteLossError(RuntimeError):
    """The loss is not a finite number."""


class OutOfMemoryError(RuntimeError):
    """The host's or a device's memory is too small."""


FAILURES = (NonFiniteLossError, OutOfMemoryError, UnreadableError, UnwritableError, OSError)
"""Errors other than of the input that say enough in one line when they end a command."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is noted; a second one ends the process.

    A closed terminal sends SIGHUP; where nohup has it ignored, it stays so. Outside the main
    thread, where Python takes no signals, none is noted.
    """

    def __enter__(self) -> "StopSignals":
        self._received: int | None = None
        self._before = {}
        with contextlib.suppress(ValueError):  # of signal.signal, outside the main thread
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number
        with contextlib.suppress(OSError):  # print would fail where it is interrupted itself
            os.write(2, b"stopping once this is saved; a second signal ends it at once\n")
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)

    def check(self) -> None:
        """Raises StoppedError once a signal has come."""
        if self._received is not None:
            raise StoppedError(self._received)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turns the out-of-memory errors of Python and XLA into a one-line OutOfMemoryError."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = (str(error).splitlines() or ["the host's"])[0][:200]
        raise OutOfMemoryError(
            f"out of memory ({reason}); try a smaller --batch_size, --width or --train_size"
        ) from error
