"""The 3x3 convolution behind every layer: one operation, with what is fastest for it by platform.

JAX sees three primitives, the convolution and its two gradients. What computes them is picked while
XLA lowers for a platform, so that an exported program is right on each: XLA's convolution on a GPU
or TPU (`xla_convolution`); on a CPU what is fastest for the size, oneDNN where it is installed
(`onednn`) or a path of our own (`cpu_convolution`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from interflow_jax.ops import cpu_convolution, onednn, xla_convolution
from interflow_jax.ops.primitive import define, lower

Library = Literal["auto", "xla", "onednn"]


def cpu_compiler_options() -> dict[str, str] | None:
    """`jax.jit`'s `compiler_options` for a program of convolutions: on CPU through Eigen.

    Products and reductions stay with YNNPACK, as by default. None on other platforms.
    """
    if jax.default_backend() != "cpu":
        return None
    kinds = ("DOT", "INDIVIDUAL_DOT", "REDUCE")
    libraries = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
    return {"xla_cpu_experimental_ynn_fusion_type": libraries}


def conv3x3(x: Array, kernel: Array, stride: int = 1, library: Library = "auto") -> Array:
    """Convolves with a 3x3 kernel and one pixel of zero padding on every side.

    Unlike "SAME" padding, output pixel (0, 0) is centred on input pixel (0, 0) for either stride
    and any size, as with `padding=1` in other frameworks. It can be differentiated any number of
    times, in either mode.

    Args:
      x: [batch, height, width, channels_in], any floating dtype.
      kernel: [3, 3, channels_in, channels_out], the dtype of `x`.
      stride: 1 or 2.
      library: what computes it on a CPU: "auto" is oneDNN where it is installed and faster for the
        size, "onednn" is oneDNN for every size, "xla" never is. Exported programs, and those that
        XLA divides between devices, are XLA's alone.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels_out], the dtype of `x`.

    Raises:
      ValueError: for another stride, dtype or library, or a kernel that does not fit `x`.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}; conv3x3 takes 1 or 2")
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[:3] != (3, 3, x.shape[-1]):
        raise ValueError(
            f"kernel has shape {kernel.shape} and x {x.shape}; conv3x3 takes x of [batch, height, "
            "width, channels_in] and a kernel of [3, 3, channels_in, channels_out]"
        )
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype} and kernel {kernel.dtype}; conv3x3 takes the same floating "
            "dtype for both: convert one with astype"
        )
    if library not in get_args(Library):
        raise ValueError(f"library is {library!r}; choose one of {', '.join(get_args(Library))}")
    if library == "onednn" and onednn.package() is None:
        raise ValueError(f'library is "onednn", which is not installed: {onednn.INSTALL}')
    return _forward.bind(*equally_varying(x, kernel), stride=int(stride), library=library)


def equally_varying(*arrays: Array) -> list[Array]:
    """Inside `shard_map`, marks all as varying over the mesh axes over which any does.

    The transpose of that mark is the sum over these axes.
    """
    axes = [jax.typeof(array).mat.varying for array in arrays]
    every = frozenset().union(*axes)
    pairs = zip(arrays, axes, strict=True)
    return [lax.pcast(array, tuple(every - own), to="varying") for array, own in pairs]


def _primitive(name: str, output: Callable[..., Any]) -> Primitive:
    """An operation with an implementation of this name per platform, and the type of its output."""
    primitive = define(f"conv3x3_{name}", output, ("stride", "size", "library"))
    batching.primitive_batchers[primitive] = partial(_batch, primitive, name)
    by_xla = getattr(xla_convolution, name)
    mlir.register_lowering(primitive, partial(_lower, by_xla))
    mlir.register_lowering(primitive, partial(_lower_for_cpu, name), platform="cpu")
    return primitive


def _batch(
    primitive: Primitive,
    name: str,
    inputs: Sequence[Array],
    axes: Sequence,
    library: Library,
    **sizes: Any,
) -> tuple[Array, int]:
    """Joins the mapped axis with the batch; several kernels are left to XLA."""
    if name == "kernel_gradient" or axes[1] is not None:
        return jax.vmap(partial(getattr(xla_convolution, name), **sizes), axes)(*inputs), 0
    x = jnp.moveaxis(inputs[0], axes[0], 0)
    joined = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    output = primitive.bind(joined, inputs[1], library=library, **sizes)
    return output.reshape(*x.shape[:2], *output.shape[1:]), 0


def _lower_for_cpu(
    name: str, context: Any, *inputs: Any, library: Library, **sizes: Any
) -> Sequence:
    dtype = context.avals_in[0].dtype
    is_empty = any(0 in aval.shape for aval in (*context.avals_in, *context.avals_out))
    implementation = cpu_convolution
    if is_empty or dtype == jnp.float64:
        implementation = xla_convolution  # the CPU's paths sum in float32, and reshape
    elif library != "xla" and (package := onednn.package()) and package.passes.usable(context):
        first, second, output = (aval.shape for aval in (*context.avals_in, *context.avals_out))
        x = output if name == "input_gradient" else first
        kernel = output if name == "kernel_gradient" else second
        fast = dtype == jnp.bfloat16 and package.passes.fast_bfloat16()
        pays = cpu_convolution.onednn_pays(name, x, kernel, sizes["stride"], fast)
        if library == "onednn" or pays:
            implementation = package.passes
    return _lower(getattr(implementation, name), context, *inputs, library=library, **sizes)


def _lower(
    function: Callable, context: Any, *inputs: Any, library: Library, **sizes: Any
) -> Sequence:
    return lower(partial(function, **sizes), context, *inputs)


def _output(x: Any, kernel: Any, *, stride: int, **_: Any) -> Any:
    height, width = (-(-size // stride) for size in x.shape[1:3])
    return x.update(shape=(x.shape[0], height, width, kernel.shape[3]), weak_type=False)


def _input_gradient_output(gradient: Any, kernel: Any, *, size: tuple[int, int], **_: Any) -> Any:
    return gradient.update(shape=(gradient.shape[0], *size, kernel.shape[2]), weak_type=False)


def _kernel_gradient_output(x: Any, gradient: Any, **_: Any) -> Any:
    shape = (3, 3, x.shape[3], gradient.shape[3])
    replicated = x.sharding.update(spec=(None,) * 4)
    return x.update(shape=shape, weak_type=False, sharding=replicated)


# All three are derivatives of one sum, that of output times gradient, which is linear in x, kernel
# and gradient: so each is linear in both of its inputs, and the other two are its transposes.
_forward = _primitive("forward", _output)
_input_gradient = _primitive("input_gradient", _input_gradient_output)
_kernel_gradient = _primitive("kernel_gradient", _kernel_gradient_output)


def _for_x(x: Any, gradient: Array, kernel: Array, **how: Any) -> Array:
    return _input_gradient.bind(gradient, kernel, size=x.aval.shape[1:3], **how)


ad.defbilinear(
    _forward,
    lambda gradient, x, kernel, **how: _for_x(x, gradient, kernel, **how),
    lambda gradient, x, kernel, **how: _kernel_gradient.bind(x, gradient, **how),
)
ad.defbilinear(
    _input_gradient,
    lambda x, gradient, kernel, size, **how: _forward.bind(x, kernel, **how),
    lambda x, gradient, kernel, size, **how: _kernel_gradient.bind(x, gradient, **how),
)
ad.defbilinear(
    _kernel_gradient,
    lambda kernel, x, gradient, **how: _for_x(x, gradient, kernel, **how),
    lambda kernel, x, gradient, **how: _forward.bind(x, kernel, **how),
)
