"""The 3x3 convolution behind every layer, with CPU paths where XLA's is slow.

Three ways, chosen by size while XLA lowers for a platform, so that an exported program is right on
each; GPU and TPU always get `lax.conv_general_dilated`:

- a sum over the kernel's taps, each a matrix product with the outputs that it reaches, for the
  smallest maps: XLA's is up to seventy times slower there;
- Winograd's F(4x4, 3x3), 36 products in place of 144, where the channels are many enough for the
  products to cost more than the transforms;
- XLA's own, best through Eigen, elsewhere (`cpu_compiler_options`; YNNPACK, its default, takes two
  to three times as long for kernel gradients).

Milliseconds, batch 64, 2 cores with AVX-512, medians of the runs from which the hypervisor took no
time away:

    channels    input map, stride      forward           input gradient     kernel gradient
                                   XLA  Winogr. taps   XLA  Winogr. taps   XLA  Winogr. taps
    512              2x2, 1        412           5.6   338           5.1   7.7           6.7
    512              4x4, 1         29     31     21    39     69     22    30     25     30
    256 to 512       8x8, 2         16            20    27            18    23            27
    256              8x8, 1         38     21           29     22           42     19
    128              16x16, 1       43     23           25     24           38     30
    64               32x32, 1       49     37           48     42           67     65
    64               8x8, 1        3.5    3.4          3.7    3.6          3.8    5.2
    64               4x4, 1        1.3           1.5   1.3           1.6   1.5           4.6
    32               16x16, 1      3.8    5.0          3.6    5.4          6.9    6.8
    16               32x32, 1      5.2     12          7.4     15          9.1     14

To delete this file's CPU paths, the day XLA is faster, let `conv3x3` return `_xla`.
"""

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Channels, of input and of output, from which fewer products are worth more operations.
_MANY_CHANNELS = 128


def cpu_compiler_options() -> dict[str, str] | None:
    """What to give `jax.jit` as `compiler_options` for a program of convolutions.

    On CPU: products and reductions through YNNPACK as by default, convolutions through Eigen.
    On other platforms: None.
    """
    if jax.default_backend() != "cpu":
        return None
    kinds = ("DOT", "INDIVIDUAL_DOT", "REDUCE")
    libraries = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
    return {"xla_cpu_experimental_ynn_fusion_type": libraries}


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
    outputs = (_output_size(x.shape[1], stride), _output_size(x.shape[2], stride))
    everywhere = partial(_xla, stride=stride)
    if _suits_taps(outputs, kernel):
        on_cpu = partial(_sum_over_taps, stride=stride)
    elif _suits_winograd(outputs, kernel, stride):
        on_cpu = _winograd
    else:
        return everywhere(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=everywhere)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv3x3(x, kernel, stride), (x, kernel)


def _backward(stride: int, inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # A convolution is linear in each argument, so XLA drops the forward passes that vjp traces.
    def everywhere(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(_xla, stride=stride), x, kernel)[1](gradient)

    def on_cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        outputs = gradient.shape[1:3]
        of_x_alone = _sum_over_taps if _suits_taps(outputs, kernel) else _xla
        (of_x,) = jax.vjp(lambda x: of_x_alone(x, kernel, stride), x)[1](gradient)
        (of_kernel,) = jax.vjp(lambda kernel: _xla(x, kernel, stride), kernel)[1](gradient)
        if _suits_winograd(outputs, kernel, stride):
            # The input's gradient is a convolution with the kernel turned around.
            of_x = _winograd(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
            of_kernel = _winograd_kernel_gradient(x, gradient)
        return of_x, of_kernel

    return lax.platform_dependent(*inputs, gradient, cpu=on_cpu, default=everywhere)


conv3x3.defvjp(_forward, _backward)


def _suits_taps(outputs: tuple[int, ...], kernel: Array) -> bool:
    size = max(outputs)
    return size <= 2 or (size <= 4 and _has_many_channels(kernel))


def _suits_winograd(outputs: tuple[int, ...], kernel: Array, stride: int) -> bool:
    return stride == 1 and max(outputs) > 4 and _has_many_channels(kernel)


def _has_many_channels(kernel: Array) -> bool:
    return min(kernel.shape[2:]) >= _MANY_CHANNELS


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


class _Tile(NamedTuple):
    """Winograd's algorithm along one axis: 4 outputs of 3 taps from 6 products, not 12.

    outputs = output @ ((kernel @ taps) * (pixels @ input)), a tile's 6 input pixels beginning one
    before its first output.
    """

    pixels: np.ndarray  # [products, input pixels]
    kernel: np.ndarray  # [products, taps]
    output: np.ndarray  # [outputs, products]


def _toom_cook(outputs: int, taps: int, points: tuple[float, ...]) -> _Tile:
    """The transposed product of polynomials, evaluated at the points and at infinity."""

    def evaluate(coefficients: int) -> np.ndarray:
        at_infinity = np.arange(coefficients) == coefficients - 1
        return np.vstack([np.vander(points, coefficients, increasing=True), at_infinity])

    pixels = np.linalg.inv(evaluate(len(points) + 1)).T
    return _Tile(pixels, evaluate(taps), evaluate(outputs).T)


_OUTPUTS = 4
# At these points the error (float32, root mean square, of the outputs' own) is 7e-7; at the usual
# 0, 1, -1, 2, -2 it is 14e-7. A plain sum has 1e-7.
_TILE = _toom_cook(_OUTPUTS, 3, (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2))


def _winograd(x: Array, kernel: Array) -> Array:
    """The convolution of stride 1, in float32, by tiles of 4x4 outputs."""
    batch, height, width, _ = x.shape
    rows, columns = -(-height // _OUTPUTS), -(-width // _OUTPUTS)
    pixels = _tiles(x, _TILE.pixels, before=1)
    taps = _transform(_TILE.kernel, list(kernel.astype(jnp.float32)))
    taps = _transform(_TILE.kernel, [taps[:, j] for j in range(3)])
    products = jnp.einsum("ptc,pcd->ptd", pixels, taps.reshape(-1, *kernel.shape[2:]))
    products = products.reshape(6, 6, batch, rows, columns, -1)
    by_column = [_combine(weights, list(products)) for weights in _TILE.output]
    outputs = [
        jnp.stack([_combine(weights, list(column)) for column in by_column], axis=3)
        for weights in _TILE.output
    ]
    shape = (batch, rows * _OUTPUTS, columns * _OUTPUTS, kernel.shape[-1])
    return jnp.stack(outputs, axis=2).reshape(shape)[:, :height, :width].astype(x.dtype)


def _winograd_kernel_gradient(x: Array, gradient: Array) -> Array:
    """The kernel's gradient: the transposes of the same transforms."""
    pixels = _tiles(x, _TILE.pixels, before=1)
    outputs = _tiles(gradient, _TILE.output.T, before=0)
    products = jnp.einsum("ptc,ptd->pcd", pixels, outputs)
    products = products.reshape(6, 6, *products.shape[1:])
    taps = _transform(_TILE.kernel.T, list(products))
    taps = _transform(_TILE.kernel.T, [taps[:, row] for row in range(6)])
    return taps.astype(x.dtype)


def _tiles(x: Array, matrix: np.ndarray, before: int) -> Array:
    """Cuts [batch, height, width, channels] into tiles and transforms their rows and columns.

    Returns:
      [products of columns x products of rows, batch x tiles, channels], float32.
    """
    _, height, width, channels = x.shape
    x = x.astype(jnp.float32)
    for axis, size in ((1, height), (3, width)):  # the first puts its products before the batch
        tiles = -(-size // _OUTPUTS)
        reach = (tiles - 1) * _OUTPUTS
        padding = [(0, 0)] * x.ndim
        padding[axis] = (before, reach + matrix.shape[1] - before - size)
        padded = jnp.pad(x, padding)
        windows = [
            lax.slice_in_dim(padded, first, first + reach + 1, _OUTPUTS, axis)
            for first in range(matrix.shape[1])
        ]
        x = _transform(matrix, windows)
    return x.reshape(len(matrix) ** 2, -1, channels)


def _transform(matrix: np.ndarray, parts: list[Array]) -> Array:
    """Multiplies a constant matrix with arrays: one array a row, stacked along a new first axis."""
    return jnp.stack([_combine(weights, parts) for weights in matrix])


def _combine(weights: np.ndarray, parts: list[Array]) -> Array:
    """The weighted sum, without the parts whose weight is zero (but for rounding)."""
    terms = [
        np.float32(weight) * part
        for weight, part in zip(weights, parts, strict=True)
        if abs(weight) > 1e-12
    ]
    return reduce(jnp.add, terms)
