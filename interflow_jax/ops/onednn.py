"""The optional package `interflow_jax_onednn`: oneDNN's convolutions, and BatchNorm, on CPUs."""

import importlib
import importlib.util
import platform
from functools import cache
from typing import Any

import jax

from interflow_jax.ops import cpu_convolution

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
    if not hasattr(found.passes, "batch_norm_relu"):
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


def pays(name: str, x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int) -> bool:
    """Whether oneDNN is faster than `cpu_convolution` for a pass (results/convolutions.md).

    By the times in float32, in bfloat16, too.

    Args:
      name: "forward", "input_gradient" or "kernel_gradient".
      x_shape: of the convolution's input.
      kernel_shape: of its kernel.
      stride: 1 or 2.
    """
    channels = kernel_shape[2:]
    size = -(-max(x_shape[1:3]) // stride)
    path = cpu_convolution.path(x_shape, kernel_shape, stride).__name__
    if size <= 2:
        enough = size == 2 and path == "_dense" and min(channels) >= 64
        return enough and name != "kernel_gradient"
    if size <= 4:
        return max(channels) <= 128
    return path != "_winograd" or size <= 6  # whose tiles of 4 by 4 are half empty
