"""The 3x3 convolution behind every layer, with a CPU path where XLA's is slow.

XLA's CPU convolution reaches 300 GFLOP/s on large feature maps and 3 GFLOP/s on a 2x2 map or on
the gradient of a stride-2 convolution onto one; there, the convolution is written as a sum over
the nine taps of the kernel, each a matrix product over the outputs that the tap reaches.
Measured on 2 cores (AVX-512), batch 64, 512 channels in and out, milliseconds:

    input map, stride     forward     input gradient    kernel gradient
                          XLA  taps       XLA   taps        XLA   taps
    1x1, 1                 16   0.7        22    1.0        3.2    1.6
    2x2, 1                348   5.8       360    5.9        8.3    5.5
    4x4, 2                 26   9.0       466    9.2         11     11
    4x4, 1                 64    26        70     35         51     52

The choice is made while XLA lowers for a platform, so an exported program is right on each; GPU
and TPU always get `lax.conv_general_dilated`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

# Largest output height and width for which the sum over taps is the faster one (table above).
_LARGEST_MAP_FOR_TAPS = 4


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves with a 3x3 kernel and one pixel of zero padding on every side.

    Unlike "SAME" padding, output pixel (0, 0) is centred on input pixel (0, 0) for either stride
    and any size, as with `padding=1` in other frameworks.

    Args:
      x: [batch, height, width, channels_in], float32 or bfloat16.
      kernel: [3, 3, channels_in, channels_out], the dtype of `x`.
      stride: 1 or 2.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels_out], the dtype of `x`.

    Raises:
      ValueError: for another stride or a kernel that does not fit `x`.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}; conv3x3 takes 1 or 2")
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[:3] != (3, 3, x.shape[-1]):
        raise ValueError(
            f"kernel has shape {kernel.shape} and x {x.shape}; conv3x3 takes x of [batch, height, "
            "width, channels_in] and a kernel of [3, 3, channels_in, channels_out]"
        )
    return _by_platform(_convolve, stride, x, kernel)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv3x3(x, kernel, stride), (x, kernel)


def _backward(stride: int, inputs: tuple[Array, Array], output_gradient: Array):
    return _by_platform(_gradients, stride, *inputs, output_gradient)


conv3x3.defvjp(_forward, _backward)


def _by_platform(operation, stride: int, x: Array, *others: Array):
    """Applies `operation` with the convolution that is the faster one where it will run."""
    everywhere = partial(operation, _xla, stride)
    if max(_output_size(x.shape[1], stride), _output_size(x.shape[2], stride)) > (
        _LARGEST_MAP_FOR_TAPS
    ):
        return everywhere(x, *others)
    return lax.platform_dependent(
        x, *others, cpu=partial(operation, _sum_over_taps, stride), default=everywhere
    )


def _convolve(convolution, stride: int, x: Array, kernel: Array) -> Array:
    return convolution(x, kernel, stride)


def _gradients(convolution, stride: int, x: Array, kernel: Array, output_gradient: Array):
    # A convolution is linear in each argument, so XLA drops the forward pass that vjp traces.
    _, vjp = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
    return vjp(output_gradient)


def _xla(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _sum_over_taps(x: Array, kernel: Array, stride: int) -> Array:
    """Sums, over the kernel's taps, the product of each with the pixels that it meets.

    Taps never meet the padding: at 2x2 that leaves 16 products of 36, at 4x4 100 of 144.
    """
    _, height, width, _ = x.shape
    rows, columns = _output_size(height, stride), _output_size(width, stride)
    total = jnp.zeros((x.shape[0], rows, columns, kernel.shape[-1]), x.dtype)
    for i in range(3):
        for j in range(3):
            first_row, last_row = _reach(i, height, rows, stride)
            first_column, last_column = _reach(j, width, columns, stride)
            if first_row > last_row or first_column > last_column:
                continue
            pixels = x[
                :,
                first_row * stride + i - 1 : last_row * stride + i : stride,
                first_column * stride + j - 1 : last_column * stride + j : stride,
            ]
            product = jnp.einsum("bhwi,io->bhwo", pixels, kernel[i, j])
            total += jnp.pad(
                product,
                (
                    (0, 0),
                    (first_row, rows - 1 - last_row),
                    (first_column, columns - 1 - last_column),
                    (0, 0),
                ),
            )
    return total


def _output_size(size: int, stride: int) -> int:
    return -(-size // stride)


def _reach(tap: int, size: int, outputs: int, stride: int) -> tuple[int, int]:
    """The first and the last output along one axis whose input pixel under `tap` is not padding."""
    first = 1 if tap == 0 else 0
    last = min(outputs - 1, (size - tap) // stride)
    return first, last
