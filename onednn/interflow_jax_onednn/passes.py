"""oneDNN's three passes of a 3x3 convolution as calls from XLA, without derivatives."""

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NAMES = ("forward", "input_gradient", "kernel_gradient")


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
    library = ctypes.CDLL(str(Path(__file__).with_name("_convolution.so")))
    for name in NAMES:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(f"interflow_jax_onednn_{name}", handler, platform="cpu")
    return library
