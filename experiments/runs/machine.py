"""What a run ran on and with."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of what the figures depend on."""
    packages = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {"python": platform.python_version(), **packages}


def device() -> str:
    """The devices in words; for CPUs on several hosts, those of this one."""
    devices = jax.devices()
    processes = jax.process_count()
    suffix = f", {processes} processes" if processes > 1 else ""
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}{suffix}"
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    shared = f" as {len(devices)} devices" if len(devices) > 1 else ""
    return f"CPU, {os.cpu_count()} cores{shared}, {model}{suffix}"


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
