"""The program `interflow`: whatever ends a command becomes one line and an exit status, here."""

import contextlib
import importlib
import os
import shlex
import sys
from typing import Any

from interflow_jax.ops.memory import keep_freed_memory

COMMANDS = {
    "run": "trains a network and evaluates it; the same command again resumes",
    "predict": "classifies pictures, or a whole dataset, with a finished run",
    "exits": "reports what cutting a finished run, and leaving it early, cost and save",
    "explore": "writes a page to look at what every depth of a finished run says",
    "export": "writes a finished run as a program, or as safetensors",
    "prepare": "downloads a dataset and prepares it",
}
OF_EXTRA = ("tqdm", "tensorboardX", "matplotlib")  # what pip install 'interflow_jax[cli]' adds
LOCKED = 75  # exit status where another process holds the run's folder; sysexits' EX_TEMPFAIL


def main(command: str, arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status, after one line about whatever ended it early.

    0 is success, 2 wrong input, 1 a failure, 75 a folder that another process holds, and 128 plus
    the signal's number a signal.

    Args:
      arguments: the command's flags; None for those of this process, which is then this command's
        alone.
    """
    from_shell = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    by_name = from_shell and os.path.basename(sys.argv[0]) == "interflow"
    program = ["interflow"] if by_name else ["python", "-m", "interflow_jax"]
    line = shlex.join([*program, command, *arguments])
    try:
        module = importlib.import_module(f"interflow_jax.cli.commands.{command}")
        options = {"detect": from_shell} if command == "run" else {}
        return guarded(command, line, lambda: module.main(arguments, **options))
    except KeyboardInterrupt:  # while modules are imported
        print(f"stopped; to begin, run the same command again: {line}", flush=True)
        return 130
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in OF_EXTRA:
            raise
        print(f"{command}: needs {error.name}: pip install 'interflow_jax[cli]'", file=sys.stderr)
        return 2


def guarded(command: str, line: str, body: Any) -> int:
    """Calls a command's body; returns its exit status (see `main`). `line` repeats it."""
    from interflow_jax.cli import machine, stopping
    from interflow_jax.cli.console import stopped
    from interflow_jax.cli.files import LockedError
    from interflow_jax.cli.parser import one_line

    def ended(status: int, how: str) -> int:
        print(one_line(f"{command}: {how}"), file=sys.stderr)
        return status

    try:
        return body()
    except SystemExit as end:  # of argparse
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except KeyboardInterrupt:
        print(f"stopped before training; to begin, run the same command again: {line}", flush=True)
        return 130
    except stopping.StoppedError as error:
        print(stopped(error, line), flush=True)
        return 128 + error.signal
    except LockedError as error:
        return ended(LOCKED, f"error: {error}")
    except ValueError as error:
        return ended(2, f"error: {error}")
    except stopping.FAILURES as error:
        of_system = isinstance(error, OSError) and error.errno is not None
        advice = "; mend that, and run the same command again" if of_system else ""
        return ended(1, f"stopped: {error}{advice}")
    except (RuntimeError, AssertionError):  # as which JAX says so depends on what asks first
        if reason := machine.without_device():
            return ended(2, f"error: {reason}")
        raise


def console(command: str | None = None) -> int:
    """The console script, `interflow COMMAND ...`, or one command of it."""
    sys.stdout, sys.stderr = Lenient(sys.stdout), Lenient(sys.stderr)
    keep_freed_memory()
    if command is not None:
        return main(command)
    name = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        return main(name)
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    usage = "usage: interflow COMMAND [--flag=value ...]\n\n" + "\n".join(lines)
    if name in ("-h", "--help"):
        print(f"{usage}\n\ninterflow COMMAND --help explains each.")
        return 0
    print(
        f"interflow: error: there is no command {name!r}; choose from {', '.join(COMMANDS)}",
        file=sys.stderr,
    )
    return 2


class Lenient:
    """A stream for people: a closed terminal, a reader that left or a full disk end no command."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be written."""
        try:
            self._stream.flush()
        except BrokenPipeError:  # nobody reads any more, and Python would say so at the end
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
