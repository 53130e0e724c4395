"""A run of a sweep in a process of its own: the main command, which ends with its driver.

python -m experiments.sweep.child CORES FLAGS...
"""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path


def _end_with_driver() -> None:
    """Ends this process when the driver does, in whatever way: its end of the pipe closes then."""
    os.read(sys.stdin.fileno(), 1)  # not through a buffer, whose lock would outlive the interpreter
    os._exit(1)


if __name__ == "__main__":
    # Ray's workers block SIGINT, and what they start inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Linux counts niceness within a session only, and this is one of its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(os.nice(0)))
    cores = [int(core) for core in sys.argv.pop(1).split(",") if core]
    if cores:
        os.sched_setaffinity(0, cores)  # before XLA starts its threads
    threading.Thread(target=_end_with_driver, daemon=True).start()
    from interflow_jax.cli.main import console

    sys.exit(console("run"))
