"""oneDNN's 3x3 convolution for JAX on CPUs: `conv3x3`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from interflow_jax_onednn import passes, xla
from interflow_jax_onednn.passes import version

__all__ = ["conv3x3", "passes", "version"]


def conv3x3(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves with a 3x3 kernel and one pixel of zero padding on every side.

    By oneDNN on CPUs, in float32 and in bfloat16 where the CPU multiplies it; by XLA elsewhere, for
    other dtypes, in exported programs, and where XLA divides the program between devices. It can be
    differentiated any number of times, in either mode.

    Args:
      x: [batch, height, width, channels_in], any floating dtype.
      kernel: [3, 3, channels_in, channels_out], the dtype of `x`.
      stride: 1 or 2.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels_out], the dtype of `x`.

    Raises:
      ValueError: for another stride or dtype, or a kernel that does not fit `x`.
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
    # Inside shard_map, both vary over the mesh axes over which either does.
    x_axes, kernel_axes = (jax.typeof(array).mat.varying for array in (x, kernel))
    x = lax.pcast(x, tuple(kernel_axes - x_axes), to="varying")
    kernel = lax.pcast(kernel, tuple(x_axes - kernel_axes), to="varying")
    return _forward.bind(x, kernel, stride=int(stride))


def _primitive(name: str, output: Callable[..., Any]) -> Primitive:
    """An operation with an implementation of this name per platform.

    Args:
      output: makes the type of its output from those of its inputs.
    """
    primitive = Primitive(f"conv3x3_{name}")
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("stride", "size")))
    primitive.def_abstract_eval(output)
    batching.primitive_batchers[primitive] = partial(_batch, primitive, name)
    mlir.register_lowering(primitive, partial(_lower, name))
    mlir.register_lowering(primitive, partial(_lower_for_cpu, name), platform="cpu")
    return primitive


def _batch(
    primitive: Primitive, name: str, inputs: Sequence[Array], axes: Sequence, **sizes: Any
) -> tuple[Array, int]:
    """Joins the mapped axis with the batch; several kernels are left to XLA."""
    if name == "kernel_gradient" or axes[1] is not None:
        return jax.vmap(partial(getattr(xla, name), **sizes), axes)(*inputs), 0
    x = jnp.moveaxis(inputs[0], axes[0], 0)
    joined = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    output = primitive.bind(joined, inputs[1], **sizes)
    return output.reshape(*x.shape[:2], *output.shape[1:]), 0


def _lower(
    name: str, context: Any, *inputs: Any, implementation: Any = xla, **sizes: Any
) -> Sequence:
    unsharded = [ShapedArray(aval.shape, aval.dtype) for aval in context.avals_in]  # no mesh here
    function = partial(getattr(implementation, name), **sizes)
    lower = mlir.lower_fun(function, multiple_results=False)
    return lower(context.replace(avals_in=unsharded), *inputs)


def _lower_for_cpu(name: str, context: Any, *inputs: Any, **sizes: Any) -> Sequence:
    implementation = passes if passes.usable(context) else xla
    return _lower(name, context, *inputs, implementation=implementation, **sizes)


def _output(x: Any, kernel: Any, *, stride: int) -> Any:
    height, width = (-(-size // stride) for size in x.shape[1:3])
    return x.update(shape=(x.shape[0], height, width, kernel.shape[3]), weak_type=False)


def _input_gradient_output(gradient: Any, kernel: Any, *, stride: int, size: tuple) -> Any:
    return gradient.update(shape=(gradient.shape[0], *size, kernel.shape[2]), weak_type=False)


def _kernel_gradient_output(x: Any, gradient: Any, *, stride: int) -> Any:
    shape = (3, 3, x.shape[3], gradient.shape[3])
    replicated = x.sharding.update(spec=(None,) * 4)
    return x.update(shape=shape, weak_type=False, sharding=replicated)


# All three are derivatives of one sum, that of output times gradient, which is linear in x, kernel
# and gradient: so each is linear in both of its inputs, and the other two are its transposes.
_forward = _primitive("forward", _output)
_input_gradient = _primitive("input_gradient", _input_gradient_output)
_kernel_gradient = _primitive("kernel_gradient", _kernel_gradient_output)


def _for_x(x: Any, gradient: Array, kernel: Array, stride: int) -> Array:
    return _input_gradient.bind(gradient, kernel, stride=stride, size=x.aval.shape[1:3])


def _for_kernel(x: Array, gradient: Array, stride: int) -> Array:
    return _kernel_gradient.bind(x, gradient, stride=stride)


def _for_gradient(x: Array, kernel: Array, stride: int) -> Array:
    return _forward.bind(x, kernel, stride=stride)


ad.defbilinear(
    _forward,
    lambda gradient, x, kernel, stride: _for_x(x, gradient, kernel, stride),
    lambda gradient, x, kernel, stride: _for_kernel(x, gradient, stride),
)
ad.defbilinear(
    _input_gradient,
    lambda x, gradient, kernel, stride, size: _for_gradient(x, kernel, stride),
    lambda x, gradient, kernel, stride, size: _for_kernel(x, gradient, stride),
)
ad.defbilinear(
    _kernel_gradient,
    lambda kernel, x, gradient, stride: _for_x(x, gradient, kernel, stride),
    lambda kernel, x, gradient, stride: _for_gradient(x, kernel, stride),
)
