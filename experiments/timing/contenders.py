"""The training steps that the benchmark compares, all of one network on one batch.

Ours is that of `experiments.run`, Flax's own modules are under `jax.jit` as in its examples, and
PyTorch is as in its tutorials: eager, channels last, compiled.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import interflow_jax as ij
from interflow_jax.ops import memory
from interflow_jax.optimizer import LEARNING_RATE
from interflow_jax.vgg import convolutions

CLASSES = 10


class Step(NamedTuple):
    """A function that trains on some batches and waits until that is done."""

    take: Callable[[], None]
    batches: int = 1


class Network(NamedTuple):
    """What is trained, and on what: images of (height, width, channels)."""

    method: str
    depth: int
    width: float
    image_shape: tuple[int, int, int]
    batch_size: int
    dtype: str = "float32"  # of the computation

    def __str__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"{self.method}, {self.depth} layers, width {self.width:g}, {shape}{dtype}"

    def build(self) -> ij.Interflow:
        """Our model of this network."""
        return ij.build(self.method, CLASSES, depth=self.depth, width=self.width, dtype=self.dtype)


class FlaxVGG(nn.Module):
    """`StrideVGG` as one would write it with Flax alone."""

    taps: tuple[int, ...]
    depth: int
    width: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        feature_maps = []
        conv, norm = (partial(layer, dtype=self.dtype) for layer in (nn.Conv, nn.BatchNorm))
        layers = convolutions(self.depth, self.width, "first")
        for number, (channels, stride) in enumerate(layers, start=1):
            x = conv(channels, (3, 3), stride, padding=1, use_bias=False)(x)
            x = norm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
            x = nn.relu(x)
            if number in self.taps:
                feature_maps.append(x)
        return feature_maps


def _jax_step(model: nn.Module, network: Network, options: dict | None) -> Step:
    optimizer = ij.make_optimizer(LEARNING_RATE)
    state = ij.create_state(model, optimizer, jax.random.key(0), network.image_shape)
    images = jax.random.normal(jax.random.key(1), (network.batch_size, *network.image_shape))
    labels = jnp.arange(network.batch_size) % CLASSES
    step = partial(ij.train_step, model, optimizer)
    program = jax.jit(step, donate_argnums=0, compiler_options=options)

    def take() -> None:
        nonlocal state
        state, metrics = program(state, images, labels)
        jax.block_until_ready((state, metrics))

    return Step(take)


def ours(network: Network) -> Step:
    """This project's step, with the settings of `experiments.run`."""
    memory.keep_freed_memory()
    return _jax_step(network.build(), network, ij.cpu_compiler_options())


def without_onednn(network: Network) -> Step:
    """Ours with XLA's convolutions and our own paths alone."""
    memory.keep_freed_memory()
    model = network.build()
    plain = model.backbone.clone(convolution="xla")
    return _jax_step(model.clone(backbone=plain), network, ij.cpu_compiler_options())


def flax(network: Network) -> Step:
    """The same branches, fusion, loss and optimiser on Flax's own convolutions and BatchNorm."""
    model = network.build()
    plain = FlaxVGG(model.backbone.taps, network.depth, network.width, model.backbone.dtype)
    return _jax_step(model.clone(backbone=plain), network, None)


def epoch(network: Network) -> Step:
    """A whole training epoch of `ij.Trainer` on fashion_mini."""
    memory.keep_freed_memory()
    trainer = ij.Trainer(
        network.build(),
        ij.data.load("fashion_mini"),
        batch_size=network.batch_size,
        optimizer=ij.make_optimizer(LEARNING_RATE),  # without a schedule, which would have an end
    )
    state, epochs = trainer.init(), 0

    def take() -> None:
        nonlocal state, epochs
        state, _ = trainer.train_epoch(state, epochs)
        jax.block_until_ready(state)
        epochs += 1

    return Step(take, trainer.steps)


def _torch(network: Network, channels_last: bool, compiled: bool) -> Step:
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn as tnn  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

    ours = network.build()
    taps = ours.backbone.taps
    layers = convolutions(network.depth, network.width, "first")
    widths = [network.image_shape[2], *(channels for channels, _ in layers)]

    class Torch(tnn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = tnn.ModuleList(
                tnn.Sequential(
                    tnn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
                    tnn.BatchNorm2d(channels),
                    tnn.ReLU(),
                )
                for channels_in, (channels, stride) in zip(widths, layers, strict=False)
            )
            # Branches with equal channels share a layer.
            self.scores = tnn.ModuleDict(
                {str(widths[tap]): tnn.Linear(widths[tap], CLASSES) for tap in taps}
            )
            shape = (len(taps), CLASSES) if ours.fusion.kind == "class" else (len(taps),)
            self.weights = tnn.Parameter(torch.full(shape, 1 / len(taps)))

        def forward(self, x):
            fused = 0
            for number, block in enumerate(self.blocks, start=1):
                x = block(x)
                if number in taps:
                    branch = self.scores[str(widths[number])](x.mean((2, 3)))
                    fused = fused + self.weights[taps.index(number)] * branch
            return fused

    model = Torch()
    height, width, channels = network.image_shape
    images = torch.randn(network.batch_size, channels, height, width)
    if channels_last:  # the memory format that its CPU convolutions prefer
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(network.batch_size) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, 0.95, weight_decay=5e-4)
    forward = torch.compile(model) if compiled else model

    def take() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=network.dtype == "bfloat16"):
            loss = cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    return Step(take)


Contender = Callable[[Network], Step]
TORCH: dict[str, Contender] = {
    "torch_eager": partial(_torch, channels_last=False, compiled=False),
    "torch_channels_last": partial(_torch, channels_last=True, compiled=False),
    "torch_compiled": partial(_torch, channels_last=True, compiled=True),
}
