"""What a run ran on and with."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from interflow_jax.ops.onednn import onednn_version
from interflow_jax.version import __version__

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what the figures depend on."""
    packages = {"python": platform.python_version(), "interflow_jax": __version__}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # tfds is an extra
            packages[name] = importlib.metadata.version(name)
    return packages


def software() -> str:
    """What rounds the figures: versions in which the same run may differ in its last digits."""
    software = f"jax {jax.__version__}"
    if jax.default_backend() == "cpu" and (version := onednn_version()):
        package = importlib.metadata.version("interflow_jax_onednn")
        software += f", oneDNN {version} (interflow_jax_onednn {package})"
    return software


def versions_line(versions: dict[str, str]) -> str:
    """A run's versions in words."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def without_device() -> str | None:
    """Why there are no devices, and what to do; None if there are some."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["no such device"])[0]
        asked = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"JAX cannot run on JAX_PLATFORMS={asked} ({reason}); set "
            "JAX_PLATFORMS=cpu or leave it unset, or install JAX for that device"
        )
    return None


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
