"""XLA's 3x3 convolution with one pixel of padding, and its gradients as JAX derives them."""

import jax
from jax import Array, lax


def forward(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def input_gradient(gradient: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    """The gradient of an input of (height, width) `size`."""
    x = jax.ShapeDtypeStruct((gradient.shape[0], *size, kernel.shape[2]), gradient.dtype)
    return jax.linear_transpose(lambda x: forward(x, kernel, stride), x)(gradient)[0]


def kernel_gradient(x: Array, gradient: Array, stride: int) -> Array:
    """The kernel's gradient."""
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[3], gradient.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: forward(x, kernel, stride), kernel)(gradient)[0]
