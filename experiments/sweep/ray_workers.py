"""The runs of a sweep on a Ray cluster.

Every machine needs the same Python environment and, under the same paths, this checkout, the run
folders and the data: a shared filesystem.
"""

import os
from pathlib import Path
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from experiments.sweep import processes
from experiments.sweep.planning import Planned
from experiments.sweep.processes import WorkerDiedError

CPUS = 4  # of a run without a GPU; more make it faster, but less than in proportion
CPUS_BESIDE_GPU = 1
_FORWARDED = ("JAX_", "XLA_", "TFDS_")  # what of the driver's environment runs depend on


class RayPool:
    """The cluster of $RAY_ADDRESS or one that runs here; else one starts on this machine."""

    slots = 10**9  # the cluster queues what it has no room for

    def __init__(self, cpus: int | None):
        forwarded = {name: os.environ[name] for name in os.environ if name.startswith(_FORWARDED)}
        try:
            ray.init(
                runtime_env={"env_vars": forwarded},
                log_to_driver=False,
                logging_level="warning",
                ignore_reinit_error=True,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS", "not set")
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"no Ray cluster, with RAY_ADDRESS {address}: {reason}") from error
        taken = share([node["Resources"] for node in ray.nodes() if node["Alive"]], cpus)
        gpu = "a GPU and " if taken["num_gpus"] else ""
        print(f"on Ray; a run takes {gpu}{taken['num_cpus']} CPU(s) and prints to its output.txt")
        # On a CPU, XLA would start a thread for every core of the machine in each of its runs.
        threads = {} if gpu else {"PJRT_NPROC": str(taken["num_cpus"])}
        # A process takes one run: memory of a GPU and compiled programs go when it ends. Ray's own
        # retries would not tell of a death, and would repeat for ever what dies of its memory.
        task = ray.remote(max_calls=1, max_retries=0)(processes.train)
        self._task = task.options(**taken, runtime_env={"env_vars": threads})

    def start(self, planned: Planned, wait: float) -> Any:
        return self._task.remote(planned, Path.cwd(), wait)

    def ended(self, running: list[Any]) -> list[tuple[Any, Exception | None]]:
        ready = ray.wait(running, num_returns=len(running), timeout=1.0)[0]
        return [(reference, _outcome(reference)) for reference in ready]

    def interrupt(self, running: list[Any]) -> None:
        for reference in running:
            ray.cancel(reference)


def share(nodes: list[dict[str, float]], cpus: int | None) -> dict[str, int]:
    """What a run takes of a machine, as Ray's options: one GPU where there are some, and CPUs.

    `nodes` are the resources of each machine by Ray's names; `cpus` are those asked for, of which a
    run takes at most what a machine has: Ray would wait for a larger one.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    asked = cpus or (CPUS_BESIDE_GPU if with_gpus else CPUS)
    most = max(int(node.get("CPU", 0)) for node in with_gpus or nodes)
    return {"num_gpus": 1 if with_gpus else 0, "num_cpus": min(asked, most or asked)}


def _outcome(reference: Any) -> Exception | None:
    """What `processes.train` returned, or raised, or how its worker died."""
    try:
        return ray.get(reference)
    except TaskCancelledError:
        return None
    except RayTaskError as raised:  # whatever else a run may raise, with its traceback
        return RuntimeError(str(raised))
    except RayError as death:
        return WorkerDiedError(str(death))
