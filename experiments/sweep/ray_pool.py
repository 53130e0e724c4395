"""The runs of a sweep on a Ray cluster.

Every machine needs the same Python environment and, under the same paths, this checkout, the run
folders and the data: a shared filesystem.
"""

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayError, TaskCancelledError  # pyright: ignore[reportMissingImports]

from experiments.sweep.pool import start

CPUS = 4  # of a run without a GPU; more speed it up, but less than proportionally
CPUS_BESIDE_GPU = 1
GPU_MEMORY = 0.9  # share for the runs on a GPU; the rest is what CUDA itself takes for each of them
_FORWARDED = ("JAX_", "XLA_", "TFDS_")  # parts of the driver's environment that runs depend on


class RayPool:
    """The cluster at $RAY_ADDRESS or one running here; otherwise one is started here."""

    slots = 10**9  # the cluster queues what it has no room for

    def __init__(self, cpus: int | None, runs_per_gpu: int = 1):
        forwarded = {name: os.environ[name] for name in os.environ if name.startswith(_FORWARDED)}
        try:
            ray.init(
                runtime_env={"env_vars": forwarded},
                log_to_driver=False,
                logging_level=logging.WARNING,
                ignore_reinit_error=True,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS", "not set")
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"no Ray cluster, with RAY_ADDRESS {address}: {reason}") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        taken = share(nodes, cpus, runs_per_gpu)
        asked = {"GPU": taken["num_gpus"], "CPU": taken["num_cpus"]}
        whole = ray.cluster_resources()
        rooms = (whole.get(name, 0) / amount for name, amount in asked.items() if amount)
        self.at_once = max(1, int(min(rooms)))
        gpu = "a GPU" if runs_per_gpu == 1 else f"1/{runs_per_gpu} of a GPU"
        gpu = f"{gpu} and " if taken["num_gpus"] else ""
        print(f"on Ray; a run takes {gpu}{taken['num_cpus']} CPU(s) and prints to its output.txt")
        if not gpu:
            # On CPU, XLA would start a thread for every core of the machine in each of its runs.
            environment = {"PJRT_NPROC": str(taken["num_cpus"])}
        elif runs_per_gpu > 1:
            # JAX would give three quarters of a GPU's memory to the first of its runs.
            environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{GPU_MEMORY / runs_per_gpu:.3f}"}
        else:
            environment = {}
        # One run per process: its GPU memory and compiled programs are freed when it ends. Ray's
        # own retries would hide a death, and would forever repeat a run that needs too much memory.
        task = ray.remote(max_calls=1, max_retries=0)(_run)
        self._task = task.options(**taken, runtime_env={"env_vars": environment})

        self._interrupts: dict[Any, Path] = {}

    def start(self, arguments: list[str], output: Path) -> Any:
        _interrupt(output).unlink(missing_ok=True)  # of a driver before
        reference = self._task.remote(arguments, output, Path.cwd())
        self._interrupts[reference] = _interrupt(output)
        return reference

    def ended(self, running: list[Any]) -> list[tuple[Any, int]]:
        ready = ray.wait(running, num_returns=len(running), timeout=1.0)[0]
        return [(reference, _outcome(reference)) for reference in ready]

    def interrupt(self, running: list[Any]) -> None:
        for reference in running:
            self._interrupts[reference].touch()
            ray.cancel(reference)  # one that still waits for room never starts


def share(
    nodes: list[dict[str, float]], cpus: int | None, runs_per_gpu: int = 1
) -> dict[str, float]:
    """What a run takes of a machine, as Ray's options: a GPU, or part of one, and CPUs.

    `nodes` are the resources of each machine by Ray's names; `cpus` are those asked for, of which a
    run takes at most what a machine has: Ray would wait for a larger machine.

    Raises:
      ValueError: for several runs per GPU if no machine has a GPU.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if runs_per_gpu > 1 and not with_gpus:
        raise ValueError(f"--runs_per_gpu={runs_per_gpu}: the Ray cluster has no GPU; leave it out")
    asked = cpus or (CPUS_BESIDE_GPU if with_gpus else CPUS)
    most = max(int(node.get("CPU", 0)) for node in with_gpus or nodes)
    gpus = 1 / runs_per_gpu if with_gpus else 0
    return {"num_gpus": gpus, "num_cpus": min(asked, most or asked)}


def _run(arguments: list[str], output: Path, directory: Path) -> int:
    """Does a run in a process of its own, on whatever machine; returns its exit status."""
    os.chdir(directory)  # the folders' paths may be relative
    output.parent.mkdir(parents=True, exist_ok=True)
    interrupt = _interrupt(output)
    process = start(arguments, output, [], {})
    told = False
    while process.poll() is None:
        # Ray does not always deliver a cancellation to a task that runs; the file system does.
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.1)
        if interrupt.exists() and not told:
            process.send_signal(signal.SIGINT)
            told = True
    interrupt.unlink(missing_ok=True)
    return process.returncode


def _interrupt(output: Path) -> Path:
    """The file that asks a run to save and end."""
    return output.with_name("interrupt")


def _outcome(reference: Any) -> int:
    """The run's exit status, or that of a signal if its worker was lost."""
    try:
        return ray.get(reference)
    except TaskCancelledError:
        return 128 + signal.SIGINT
    except RayError:
        return -signal.SIGKILL
