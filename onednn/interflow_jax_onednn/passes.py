"""Calls from XLA, without derivatives: oneDNN's convolution, and BatchNorm with ReLU.

The passes of a 3x3 convolution are oneDNN's. Those of BatchNorm are loops of this package: oneDNN's
of eight channels take three times as long, and no second thread where XLA has it.
"""

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NAMES = (
    "forward",
    "input_gradient",
    "kernel_gradient",
    "batch_norm_relu",
    "batch_norm_relu_gradient",
)


def forward(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution of `conv3x3`."""
    height, width = (-(-size // stride) for size in x.shape[1:3])
    return _call("forward", (x.shape[0], height, width, kernel.shape[3]), x, kernel, stride)


def input_gradient(gradient: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    """The gradient of an input of (height, width) `size`."""
    shape = (gradient.shape[0], *size, kernel.shape[2])
    return _call("input_gradient", shape, gradient, kernel, stride)


def kernel_gradient(x: Array, gradient: Array, stride: int) -> Array:
    """The kernel's gradient: the same to the bit on any number of cores."""
    return _call("kernel_gradient", (3, 3, x.shape[3], gradient.shape[3]), x, gradient, stride)


def batch_norm_relu(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """The positive part of a map that is normalised by its own mean and variance per channel.

    Args:
      x: [..., channels], float32 or bfloat16, not empty.
      scale: [channels], float32.
      bias: [channels], float32.
      epsilon: added to the variance.

    Returns:
      The result, like `x`, and the mean and the (biased) variance, each [channels], float32. They
      are the same to the bit on any number of cores.
    """
    _library()
    per_channel = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    outputs = jax.ShapeDtypeStruct(x.shape, x.dtype), per_channel, per_channel
    call = jax.ffi.ffi_call("interflow_jax_onednn_batch_norm_relu", outputs)
    return call(x, scale, bias, epsilon=np.float32(epsilon))


def batch_norm_relu_gradient(
    gradient: Array, x: Array, y: Array, mean: Array, var: Array, scale: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """The gradients of `x`, `scale` and `bias` of `batch_norm_relu` from that of its result.

    Args:
      gradient: like `x`.
      x: as was given to it, as were `scale` and `epsilon`.
      y: its result, as are `mean` and `var`.
    """
    _library()
    per_channel = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    outputs = jax.ShapeDtypeStruct(x.shape, x.dtype), per_channel, per_channel
    call = jax.ffi.ffi_call("interflow_jax_onednn_batch_norm_relu_gradient", outputs)
    return call(gradient, x, y, mean, var, scale, epsilon=np.float32(epsilon))


def usable(context: Any) -> bool:
    """Whether the lowering of `context`, a rule's for CPUs, may be to these passes.

    An exported program could not be loaded elsewhere, and XLA would gather the whole batch of one
    that it divides between devices; inside `jax.shard_map` nothing is left for it to divide.
    """
    module = context.module_context
    axes = module.axis_context
    if hasattr(axes, "manual_axes"):
        divided = axes.manual_axes != frozenset(axes.mesh.axis_names)
    else:
        divided = axes.num_devices > 1
    dtype = context.avals_in[0].dtype
    known = dtype == jnp.float32 or (dtype == jnp.bfloat16 and _library().has_bfloat16())
    return bool(known and not divided and not module.lowering_parameters.for_export)


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself, about twice as fast as float32."""
    return bool(_library().has_fast_bfloat16())


def version() -> str:
    """oneDNN's, such as "3.2.1"."""

    class Version(ctypes.Structure):
        _fields_ = [(part, ctypes.c_int) for part in ("major", "minor", "patch")]

    dnnl_version = _library().dnnl_version
    dnnl_version.restype = ctypes.POINTER(Version)
    numbers = dnnl_version().contents
    return f"{numbers.major}.{numbers.minor}.{numbers.patch}"


def _call(name: str, shape: tuple[int, ...], x: Array, y: Array, stride: int) -> Array:
    _library()
    call = jax.ffi.ffi_call(f"interflow_jax_onednn_{name}", jax.ShapeDtypeStruct(shape, x.dtype))
    return call(x, y, stride=np.int64(stride))


@cache
def _library() -> ctypes.CDLL:
    """Loads oneDNN, wherever pip has put it, and then what calls it."""
    try:
        parts = files("onednn-cpu-gomp") or ()
    except PackageNotFoundError:  # oneDNN of another origin, which the system's loader may know
        parts = ()
    for part in parts:
        if part.name == "libdnnl.so.3":
            ctypes.CDLL(str(part.locate()))
    library = ctypes.CDLL(str(Path(__file__).with_name("_handlers.so")))
    for name in NAMES:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(f"interflow_jax_onednn_{name}", handler, platform="cpu")
    return library
