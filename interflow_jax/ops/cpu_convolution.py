"""The CPU paths of `conv3x3`, for sizes at which XLA's convolution is slow, and where oneDNN pays.

Each of the three functions picks one by size alone. All times: results/convolutions.md.

- `_sum_over_taps`, for the smallest maps: products that skip the padding (XLA's convolution is up
  to seventy times slower there); `_dense`, with fewer channels: one product for all pixels;
- `_multiples`, for few input channels, as images have: no matrix product, half to an eighth of
  XLA's time;
- `_winograd`, for many channels: F(4x4, 3x3), 36 products in place of 144. At 64 channels, 32x32,
  it saves nothing in a whole step; at 16 its transforms take 2 to 3 times XLA's time;
- `_input_gradient_by_phases`, for stride 2: down to half of XLA's time, which multiplies zeros;
- XLA's elsewhere, best through Eigen (`cpu_compiler_options`): YNNPACK, its default, takes two to
  three times as long for kernel gradients.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from interflow_jax.ops import xla_convolution as xla

# Channels, of input and of output, from which fewer products are worth more operations.
_MANY_CHANNELS = 128
# Input channels (at stride 2: half as many) up to which a product has too little to do for its
# cost, and the largest product of input and output channels for which adding multiples is faster.
_FEW_CHANNELS = 8
_FEW_MULTIPLES = 256
# Height and width up to which a map is mostly border.
_SMALL = 4


def forward(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution, summed in float32."""
    return path(x.shape, kernel.shape, stride)(x, kernel, stride)


def input_gradient(gradient: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    """The gradient of an input of (height, width) `size`."""
    way = path((gradient.shape[0], *size, kernel.shape[2]), kernel.shape, stride)
    if stride == 1 and way is not _dense:
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        way = path(gradient.shape, turned.shape, stride)
        return way(gradient, _in_order(turned) if way is _multiples else turned, stride)
    if stride == 2 and max(gradient.shape[1:3]) > _SMALL and min(kernel.shape[2:]) < _MANY_CHANNELS:
        return _input_gradient_by_phases(kernel, gradient, *size)
    return xla.input_gradient(gradient, kernel, stride, size, forward=way)


def kernel_gradient(x: Array, gradient: Array, stride: int) -> Array:
    """The kernel's gradient."""
    way = path(x.shape, (3, 3, x.shape[3], gradient.shape[3]), stride)
    if way is _winograd:
        return _winograd_kernel_gradient(x, gradient)
    way = _dense if way is _dense else xla.forward
    return xla.kernel_gradient(x, gradient, stride, forward=way)


def path(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int
) -> Callable[..., Array]:
    """What computes the forward pass, by sizes alone."""
    channels_in, channels_out = kernel_shape[2:]
    size = _output_size(max(x_shape[1:3]), stride)
    many_channels = min(channels_in, channels_out) >= _MANY_CHANNELS
    if size <= 2 and stride == 1 and max(channels_in, channels_out) <= _MANY_CHANNELS:
        return _dense
    if size <= 2 or (size <= _SMALL and many_channels):
        return _sum_over_taps
    few_multiples = channels_in * channels_out <= _FEW_MULTIPLES
    if channels_in * stride <= _FEW_CHANNELS and few_multiples:
        return _multiples
    if stride == 1 and size > _SMALL and many_channels:
        return _winograd
    return xla.forward


def onednn_pays(
    name: str,
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    stride: int,
    fast_bfloat16: bool = False,
) -> bool:
    """Whether oneDNN, where it is installed, is faster for a pass, by its times in float32.

    By the same in bfloat16, unless the CPU multiplies that twice as fast: our paths take float32.
    """
    channels = kernel_shape[2:]
    size = -(-max(x_shape[1:3]) // stride)
    way = path(x_shape, kernel_shape, stride)
    if fast_bfloat16 and way is not _dense:
        return size > 2 or name != "kernel_gradient"
    if size <= 2:
        enough = size == 2 and way is _dense and min(channels) >= 64
        return enough and name != "kernel_gradient"
    if size <= 4:
        return max(channels) <= 128
    return way is not _winograd or size <= 6  # whose tiles of 4 by 4 are half empty


def _sum_over_taps(x: Array, kernel: Array, stride: int) -> Array:
    """Sums, over taps, each one's product with its pixels: at 2x2, 16 of 36 are not padding."""
    batch, height, width, _ = x.shape
    dtype, x, kernel = x.dtype, x.astype(jnp.float32), kernel.astype(jnp.float32)
    shape = batch, _output_size(height, stride), _output_size(width, stride), kernel.shape[-1]
    total = jnp.zeros(shape, jnp.float32)
    for i, j in np.ndindex(3, 3):
        rows, above_and_below = _reach(i, height, stride)
        columns, left_and_right = _reach(j, width, stride)
        pixels = x[:, rows, columns]
        if pixels.size:
            product = jnp.einsum("bhwi,io->bhwo", pixels, kernel[i, j])
            total += jnp.pad(product, ((0, 0), above_and_below, left_and_right, (0, 0)))
    return total.astype(dtype)


def _output_size(size: int, stride: int) -> int:
    return -(-size // stride)


def _reach(tap: int, size: int, stride: int) -> tuple[slice, tuple[int, int]]:
    """Along one axis, the pixels that `tap` meets, and how many outputs before and after them.

    Those outputs have padding under the tap.
    """
    first, outputs = int(tap == 0), _output_size(size, stride)
    last = min(outputs - 1, (size - tap) // stride)
    pixels = slice(first * stride + tap - 1, max(last * stride + tap, 0), stride)
    return pixels, (first, outputs - 1 - last)


def _multiples(x: Array, kernel: Array, stride: int) -> Array:
    """Sums, over taps and input channels, that channel's pixels times a row of the kernel."""
    batch, height, width, _ = x.shape
    rows, columns = ((_output_size(size, stride) - 1) * stride + 1 for size in (height, width))
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = kernel.astype(jnp.float32)
    terms = []
    for i, j, channel in np.ndindex(kernel.shape[:3]):
        pixels = padded[..., channel : channel + 1]
        # Sliced after the product: XLA takes the middle of a padded map from the map itself, and
        # where that is a sum of multiples too, recomputes it for each channel.
        products = pixels * kernel[i : i + 1, j : j + 1, channel : channel + 1]
        last = (batch, i + rows, j + columns, products.shape[-1])
        terms.append(lax.slice(products, (0, i, j, 0), last, (1, stride, stride, 1)))
    # Short chains that do not wait for each other: a single one takes up to half again as long.
    chains = [reduce(jnp.add, terms[first : first + 8]) for first in range(0, len(terms), 8)]
    while len(chains) > 1:
        chains = [reduce(jnp.add, chains[first : first + 2]) for first in range(0, len(chains), 2)]
    return chains[0].astype(x.dtype)


def _in_order(kernel: Array) -> Array:
    """The same kernel by a product with the identity, which XLA does not fuse.

    A plain transposition would join the loop of `_multiples`, which then takes four times as long.
    """
    identity = jnp.eye(kernel.shape[2], dtype=kernel.dtype)
    return jnp.einsum("ijcd,ce->ijed", kernel, identity, precision="highest")


def _input_gradient_by_phases(kernel: Array, gradient: Array, height: int, width: int) -> Array:
    """The input's gradient for stride 2, where XLA convolves a gradient that is 3/4 zeros.

    Even rows of the input meet only the kernel's middle row, odd ones the other two. The same holds
    for the columns, which become channels here.
    """
    batch, rows, columns, _ = gradient.shape

    def convolve(kernel_rows: list[int]) -> Array:
        taps = kernel[jnp.array(kernel_rows)]
        none = jnp.zeros_like(taps[:, 0])
        even = jnp.stack([taps[:, 1], none], axis=1)
        odd = jnp.stack([taps[:, 2], taps[:, 0]], axis=1)
        both = jnp.stack([even, odd], axis=3)  # [rows, 2 columns, channels_in, 2, channels_out]
        both = both.transpose(0, 1, 4, 3, 2).reshape(len(kernel_rows), 2, kernel.shape[3], -1)
        return lax.conv_general_dilated(
            gradient,
            both,
            window_strides=(1, 1),
            padding=((0, len(kernel_rows) - 1), (0, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    interleaved = jnp.stack([convolve([1]), convolve([2, 0])], axis=2)
    return interleaved.reshape(batch, rows * 2, columns * 2, -1)[:, :height, :width]


def _dense(x: Array, kernel: Array, stride: int) -> Array:
    """One product with a matrix from every pixel to every other, for maps up to 2x2, stride 1.

    With more channels, building the matrix costs more than the products of `_sum_over_taps`.
    """
    assert (stride, max(x.shape[1:3])) in ((1, 1), (1, 2))
    batch, height, width, channels = x.shape
    rows = jnp.stack([kernel[1 - i : 1 - i + height] for i in range(height)])
    blocks = jnp.stack([rows[:, :, 1 - j : 1 - j + width] for j in range(width)], axis=2)
    # [output row, input row, output column, input column, channels_in, channels_out]
    matrix = blocks.transpose(1, 3, 4, 0, 2, 5).reshape(height * width * channels, -1)
    return (x.reshape(batch, -1) @ matrix).reshape(batch, height, width, -1)


class _Tile(NamedTuple):
    """Winograd's algorithm along one axis: 4 outputs of 3 taps from 6 products, not 12.

    outputs = output @ ((kernel @ taps) * (pixels @ input)).
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
# At these points the error (float32, root mean square, relative to the outputs') is 7e-7; at the
# usual 0, 1, -1, 2, -2 it is 14e-7. A plain sum has 1e-7.
_TILE = _toom_cook(_OUTPUTS, 3, (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2))


def _winograd(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution, of stride 1 only, in float32, by tiles of 4x4 outputs."""
    assert stride == 1
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
    """Multiplies arrays by a constant matrix: one array per row, stacked along a new first axis."""
    return jnp.stack([_combine(weights, parts) for weights in matrix])


def _combine(weights: np.ndarray, parts: list[Array]) -> Array:
    """The weighted sum, without the parts whose weight is zero (up to rounding)."""
    terms = [
        np.float32(weight) * part
        for weight, part in zip(weights, parts, strict=True)
        if abs(weight) > 1e-12
    ]
    return reduce(jnp.add, terms)
