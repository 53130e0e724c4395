"""The paper's backbone: VGG-16's convolutions, strides in place of pooling (IV-B)."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from interflow_jax.ops.convolution import Library, conv3x3
from interflow_jax.ops.normalization import BatchNormRelu
from interflow_jax.switch import check_images

Downsample = Literal["first", "last"]
Layout = Literal["spread", "append"]

BLOCK_CHANNELS = (64, 128, 256, 512, 512)  # VGG-16, the paper's reference 27
BLOCK_CONVOLUTIONS = (2, 2, 3, 3, 3)
VGG_DEPTH = sum(BLOCK_CONVOLUTIONS)
MIN_DEPTH = 4  # the shallowest model of Table I
MAX_DEPTH = 200


class StrideVGG(nn.Module):
    """VGG-16 without its fully connected layers, with strided convolutions for downsampling.

    Every 3x3 convolution has no bias and is followed by BatchNorm and ReLU (paper, IV-B).
    Depth 4 to 12 drops the deepest of VGG's 13 convolutions (III-D, Table I); `layout` says
    what depth 14 to 200 adds (Table VI).

    Attributes:
      taps: the convolutions, counted from 1, whose outputs are returned; ascending.
      depth: number of convolutions, 4 to 200.
      width: multiplies VGG's channel counts 64, 128, 256, 512 and 512 (rounded, at least 1).
      downsample: where the stride-2 convolutions are: "first" in blocks 2 to 5, or "last" in
        every block.
      layout: above depth 13, "spread" distributes the convolutions over the five blocks as
        2:2:3:3:3; "append" keeps VGG's 13 and adds more at the last scale, with as many channels
        as the 13th.
      dtype: the dtype of the computation; parameters and BatchNorm's statistics stay float32.
      start: the first convolution that runs, at most the first tap; from 2 on, the input is the
        output of the convolution before it.
      convolution: the `library` of `conv3x3`.
    """

    taps: tuple[int, ...]
    depth: int = VGG_DEPTH
    width: float = 1.0
    downsample: Downsample = "first"
    layout: Layout = "spread"
    dtype: Any = jnp.float32
    start: int = 1
    convolution: Library = "auto"

    @property
    def labels(self) -> tuple[int, ...]:
        """The branches' labels: the convolutions that they follow."""
        return tuple(self.taps)

    @nn.nowrap
    def segments(self) -> list["StrideVGG"]:
        """The backbone in parts, from one tap's output to the next, with the same parameters."""
        starts = (self.start, *(tap + 1 for tap in self.taps[:-1]))
        return [
            self.clone(taps=(tap,), start=start)
            for start, tap in zip(starts, self.taps, strict=True)
        ]

    @nn.compact
    def __call__(self, images: Array, train: bool) -> list[Array]:
        """Computes the feature maps at the taps.

        Args:
          images: [batch, height, width, channels], float, any height and width; from `start` 2 on,
            a feature map.
          train: whether BatchNorm normalises by the batch or by its running statistics.

        Returns:
          One [batch, height_i, width_i, channels_i] of `dtype` per tap, shallow to deep.

        Raises:
          ValueError: for a field outside those above, or images that are not such: of integers, as
            pixels are, or with the channels first.
        """
        self.check()
        _check_images(images, self.start)
        x = images.astype(self.dtype)
        feature_maps = []
        for number, (channels, stride) in enumerate(
            convolutions(self.depth, self.width, self.downsample, self.layout), start=1
        ):
            if number < self.start:
                continue
            layer = _ConvNormRelu(
                channels, stride, self.dtype, self.convolution, name=f"conv{number}"
            )
            x = layer(x, train)
            if number in self.taps:
                feature_maps.append(x)
            if number == self.taps[-1]:
                break  # nothing deeper than the last tap reaches an output
        return feature_maps

    def check(self) -> None:
        """Raises the ValueError that calling would, before any array exists."""
        if not MIN_DEPTH <= self.depth <= MAX_DEPTH:
            raise ValueError(f"depth is {self.depth}; choose {MIN_DEPTH} to {MAX_DEPTH}")
        if not 0 < self.width < math.inf:
            raise ValueError(f"width is {self.width}; choose a number above 0 (1 is the paper's)")
        fields = (("downsample", Downsample), ("layout", Layout), ("convolution", Library))
        for name, choices in fields:
            value = getattr(self, name)
            if value not in get_args(choices):
                allowed = ", ".join(get_args(choices))
                raise ValueError(f"{name} is {value!r}; choose one of {allowed}")
        several = isinstance(self.taps, Sequence) and not isinstance(self.taps, str)
        if not several or not self.taps or list(self.taps) != sorted(set(self.taps)):
            raise ValueError(f"taps are {self.taps}; give one or more convolutions, ascending")
        lacking = [tap for tap in self.taps if tap not in range(1, self.depth + 1)]
        if lacking:
            raise ValueError(
                f"taps are {self.taps}, but depth {self.depth} has no convolution "
                f"{', '.join(map(str, lacking))}; choose taps from 1 to {self.depth}, "
                "or another depth"
            )
        if not 1 <= self.start <= self.taps[0]:
            raise ValueError(f"start is {self.start}; choose 1 to the first tap, {self.taps[0]}")


def _check_images(images: Array, start: int) -> None:
    check_images(images)
    shape = jnp.shape(images)
    takes = "StrideVGG takes [batch, height, width, channels], normalised floats"
    if len(shape) != 4:
        raise ValueError(f"images have shape {shape}; {takes}")
    _, first, second, third = shape
    if start == 1 and first in (1, 3) and second == third > 3:
        raise ValueError(f"images have shape {shape}, which is channels first; {takes}")


class _ConvNormRelu(nn.Module):
    channels: int
    stride: int
    dtype: Any
    convolution: Library

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shape = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape, jnp.float32)
        x = conv3x3(x, kernel.astype(self.dtype), self.stride, self.convolution)
        return BatchNormRelu(self.dtype, self.convolution, name="norm")(x, train)


def convolutions(
    depth: int, width: float, downsample: Downsample, layout: Layout = "spread"
) -> list[tuple[int, int]]:
    """The (output channels, stride) of each convolution of a StrideVGG, shallow to deep."""
    counts = BLOCK_CONVOLUTIONS
    if layout == "spread" and depth > VGG_DEPTH:
        spread = [depth * share // VGG_DEPTH for share in BLOCK_CONVOLUTIONS[:-1]]
        counts = (*spread, depth - sum(spread))
    layers = []
    for block, (count, channels) in enumerate(zip(counts, BLOCK_CHANNELS, strict=True)):
        strides = [1] * count
        if downsample == "last":
            strides[-1] = 2
        elif block > 0:
            strides[0] = 2
        layers += [(max(1, round(channels * width)), stride) for stride in strides]
    appended = [(layers[-1][0], 1)] * (depth - len(layers))
    return (layers + appended)[:depth]


def forward_flops(backbone: StrideVGG, image_shape: tuple[int, ...]) -> float:
    """Operations of the backbone for one image, two per multiply-add, up to its last tap.

    Those of its convolutions, with padding counted as data: what XLA counts, of the paths that a
    CPU takes, would mislead.

    Args:
      backbone: whose convolutions are counted.
      image_shape: (height, width, channels).
    """
    height, columns, channels_in = image_shape
    layers = convolutions(backbone.depth, backbone.width, backbone.downsample, backbone.layout)
    total = 0.0
    for channels, stride in layers[: backbone.taps[-1]]:
        height, columns = -(-height // stride), -(-columns // stride)
        total += 2 * 9 * height * columns * channels_in * channels
        channels_in = channels
    return total
