"""The optional package `interflow_jax_onednn`: oneDNN's convolutions, and BatchNorm, on CPUs."""

import importlib
import importlib.util
import platform
from functools import cache
from typing import Any

import jax

INSTALL = "pip install ./onednn"  # in the project's folder


@cache
def package() -> Any:
    """`interflow_jax_onednn`, or None where it is not installed.

    Raises:
      ImportError: for an older one, which lacks what is called here.
    """
    if importlib.util.find_spec("interflow_jax_onednn") is None:
        return None
    found = importlib.import_module("interflow_jax_onednn")
    if not hasattr(found.passes, "fast_bfloat16"):
        raise ImportError(f"interflow_jax_onednn is older than this interflow_jax: {INSTALL}")
    return found


def onednn_version() -> str | None:
    """The version of oneDNN that computes convolutions on CPUs; None where it is not installed."""
    return package().version() if package() else None


def hint() -> str | None:
    """One line on what installing it would bring; None where it is installed, or for no CPU."""
    if package() or jax.default_backend() != "cpu" or platform.machine() != "x86_64":
        return None
    return f"With oneDNN, narrow networks train faster on a CPU (docs/speed.md): {INSTALL}"
