"""The 3x3 convolution behind every layer, with a CPU path where XLA's is slow.

XLA's CPU convolution is about a hundred times slower, operation by operation, on a 2x2 map or on
the gradient of a stride-2 convolution onto one than on large maps. There, the convolution is
written as a sum over the nine taps of the kernel, each a matrix product over the outputs that the
tap reaches. On larger maps only XLA's kernel gradient is slow; there, patches are gathered from a
few images at a time, in a loop, and multiplied with the output gradients. Milliseconds, medians,
batch 64, 2 cores with AVX-512:

    channels  input map, stride     forward     input gradient    kernel gradient
                                    XLA  taps       XLA   taps        XLA   taps
    512            1x1, 1            16   0.7        22    1.0        3.2    1.6
    512            2x2, 1           348   5.8       360    5.9        8.3    5.5
    512            4x4, 2            26   9.0       466    9.2         11     11
    512            4x4, 1            64    26        70     35         51     52
                                                                      XLA   patches
    256            8x8, 1                                              84     51
    128            16x16, 1                                           132     77
    64             32x32, 1                                           305    136

The choice is made while XLA lowers for a platform, so an exported program is right on each; GPU
and TPU always get `lax.conv_general_dilated`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

# Largest output height and width for which the sum over taps is the faster one (table above).
_LARGEST_MAP_FOR_TAPS = 4
# Bytes of patches that are gathered at once for a kernel gradient: a few times a core's L2 cache.
_PATCH_BYTES = 5_000_000


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

    def everywhere(x: Array, kernel: Array) -> Array:
        return _xla(x, kernel, stride)

    def on_cpu(x: Array, kernel: Array) -> Array:
        return _sum_over_taps(x, kernel, stride)

    if not _is_small(x, stride):
        return everywhere(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=everywhere)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv3x3(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, inputs: tuple[Array, Array], output_gradient: Array
) -> tuple[Array, Array]:
    # A convolution is linear in each argument, so XLA drops the forward passes that vjp traces.
    def everywhere(x: Array, kernel: Array, output_gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_xla, stride=stride), x, kernel)[1](output_gradient)

    def on_cpu(x: Array, kernel: Array, output_gradient: Array) -> tuple[Array, Array]:
        if _is_small(x, stride):
            return jax.vjp(partial(_sum_over_taps, stride=stride), x, kernel)[1](output_gradient)
        (x_gradient,) = jax.vjp(lambda x: _xla(x, kernel, stride), x)[1](output_gradient)
        return x_gradient, _kernel_gradient(x, output_gradient, stride)

    return lax.platform_dependent(*inputs, output_gradient, cpu=on_cpu, default=everywhere)


conv3x3.defvjp(_forward, _backward)


def _is_small(x: Array, stride: int) -> bool:
    return _output_size(max(x.shape[1:3]), stride) <= _LARGEST_MAP_FOR_TAPS


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


def _kernel_gradient(x: Array, output_gradient: Array, stride: int) -> Array:
    """The kernel's gradient as products of patches with output gradients, a few images at a time.

    Gathered for the whole batch at once, patches would leave the caches.
    """
    batch, rows, columns, channels_out = output_gradient.shape
    channels_in = x.shape[-1]
    image_bytes = rows * columns * 9 * channels_in * x.dtype.itemsize
    fitting = max(1, _PATCH_BYTES // image_bytes)
    images = next(size for size in (8, 4, 2, 1) if size <= fitting and batch % size == 0)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add_chunk(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        pixels, gradient = chunk
        height, width = (rows - 1) * stride + 1, (columns - 1) * stride + 1
        patches = [
            pixels[:, i : i + height : stride, j : j + width : stride]
            for i in range(3)
            for j in range(3)
        ]
        product = jnp.einsum(
            "bhwi,bhwo->io",
            jnp.concatenate(patches, axis=-1),
            gradient,
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    zero = jnp.zeros((9 * channels_in, channels_out), jnp.float32)
    padded, output_gradient = (
        array.reshape(batch // images, images, *array.shape[1:])
        for array in (padded, output_gradient)
    )
    total, _ = lax.scan(add_chunk, zero, (padded, output_gradient))
    return total.reshape(3, 3, channels_in, channels_out).astype(x.dtype)


def _output_size(size: int, stride: int) -> int:
    return -(-size // stride)


def _reach(tap: int, size: int, outputs: int, stride: int) -> tuple[int, int]:
    """The first and the last output along one axis whose input pixel under `tap` is not padding."""
    first = 1 if tap == 0 else 0
    last = min(outputs - 1, (size - tap) // stride)
    return first, last
