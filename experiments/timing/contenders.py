"""The training steps that the benchmark compares.

All train the same network on the same batch: ours as `experiments.run` does, Flax's own modules
under `jax.jit` as its examples do, PyTorch as its tutorials do (eager, channels last, compiled).
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import interflow_jax as ij
from interflow_jax.backbones import StrideVGG, convolutions, forward_flops
from interflow_jax.ops import memory

CLASSES = 10


class Step(NamedTuple):
    """What a contender does at a time.

    Attributes:
      take: does it, and waits until it is done.
      batches: that it trains on.
    """

    take: Callable[[], None]
    batches: int = 1


class Network(NamedTuple):
    """What is trained, and on what.

    Attributes:
      method: of Table II.
      depth: convolutions.
      width: multiplies their channels.
      image_shape: (height, width, channels).
      batch_size: images a step.
    """

    method: str
    depth: int
    width: float
    image_shape: tuple[int, int, int]
    batch_size: int

    def __str__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"{self.method}, {self.depth} layers, width {self.width:g}, {shape}"

    def flops(self) -> float:
        """Of a step's convolutions, two a multiply-add, padding counted as if it were data.

        Three times the forward pass, less the gradient of the images, which nobody needs.
        """
        backbone = StrideVGG((self.depth,), self.depth, self.width)
        forward = forward_flops(backbone, self.image_shape)
        height, width, channels_in = self.image_shape
        channels, stride = convolutions(self.depth, self.width, "first")[0]
        of_images = 2 * 9 * -(-height // stride) * -(-width // stride) * channels_in * channels
        return self.batch_size * (3 * forward - of_images)


class FlaxVGG(nn.Module):
    """`StrideVGG` as one would write it with Flax alone."""

    taps: tuple[int, ...]
    depth: int
    width: float

    @nn.compact
    def __call__(self, x, train):
        feature_maps = []
        for number, (channels, stride) in enumerate(
            convolutions(self.depth, self.width, "first"), start=1
        ):
            x = nn.Conv(channels, (3, 3), stride, padding=1, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
            x = nn.relu(x)
            if number in self.taps:
                feature_maps.append(x)
        return feature_maps


def _jax_step(model: nn.Module, network: Network, options: dict | None) -> Step:
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(1_000_000, 0.5))
    state = ij.create_state(model, optimizer, jax.random.key(0), network.image_shape)
    images = jax.random.normal(jax.random.key(1), (network.batch_size, *network.image_shape))
    labels = jnp.arange(network.batch_size) % CLASSES
    program = jax.jit(
        partial(ij.train_step, model, optimizer), donate_argnums=0, compiler_options=options
    )

    def take() -> None:
        nonlocal state
        state, metrics = program(state, images, labels)
        jax.block_until_ready((state, metrics))

    return Step(take)


def _build(network: Network) -> ij.Interflow:
    return ij.build(network.method, CLASSES, depth=network.depth, width=network.width)


def ours(network: Network) -> Step:
    """This project's step, with the settings of `experiments.run`."""
    memory.keep_freed_memory()
    return _jax_step(_build(network), network, ij.cpu_compiler_options())


def flax(network: Network) -> Step:
    """The same branches, fusion, loss and optimiser on Flax's own convolutions and BatchNorm."""
    backbone = _build(network).backbone
    plain = FlaxVGG(backbone.taps, backbone.depth, backbone.width)
    return _jax_step(_build(network).clone(backbone=plain), network, None)


def product(network: Network) -> Step:
    """A product of two 2048x2048 float32 matrices: what this machine can do at best."""
    del network
    matrix = jnp.ones((2048, 2048))
    multiply = jax.jit(jnp.matmul)

    return Step(lambda: jax.block_until_ready(multiply(matrix, matrix)), batches=0)


PRODUCT_FLOPS = 2 * 2048**3


def epoch(network: Network) -> Step:
    """A whole training epoch of `experiments.run` on fashion_mini, and its checkpoint."""
    memory.keep_freed_memory()
    from experiments.cli.configuration import Configuration
    from experiments.cli.console import Progress
    from experiments.runs import single
    from experiments.runs.folder import RunFolder
    from experiments.runs.stopping import StopSignals
    from experiments.runs.training import Position, TrainingRun

    flags = Configuration(
        method=network.method,
        depth=network.depth,
        width=network.width,
        batch_size=network.batch_size,
    )
    folder = RunFolder(Path(tempfile.mkdtemp()))
    atexit.register(shutil.rmtree, folder.path, ignore_errors=True)
    trainer = single.prepare(flags, {0: folder}, "")
    training = TrainingRun(trainer, 1, 0, folder, flags.checkpoint_minutes)
    stop = StopSignals()
    stop.__enter__()
    epochs = 0

    def take() -> None:
        nonlocal epochs
        training.train_epoch(stop, Progress(trainer.steps * trainer.batch_size, 0))
        epochs += 1
        training.position = Position(epoch=epochs)
        training.save(print)

    return Step(take, batches=trainer.steps)


def torch_eager(network: Network) -> Step:
    """PyTorch as it comes."""
    return _torch_step(network, channels_last=False, compiled=False)


def torch_channels_last(network: Network) -> Step:
    """PyTorch with images in the memory format that its CPU convolutions prefer."""
    return _torch_step(network, channels_last=True, compiled=False)


def torch_compiled(network: Network) -> Step:
    """As `torch_channels_last`, through `torch.compile`."""
    return _torch_step(network, channels_last=True, compiled=True)


def _torch_step(network: Network, channels_last: bool, compiled: bool) -> Step:
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn as tnn  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

    ours = _build(network)
    taps = ours.backbone.taps
    layers = convolutions(network.depth, network.width, "first")
    per_class = ours.fusion.kind == "class"

    class Torch(tnn.Module):
        def __init__(self):
            super().__init__()
            channels_in = network.image_shape[2]
            blocks = []
            for channels, stride in layers:
                blocks.append(
                    tnn.Sequential(
                        tnn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
                        tnn.BatchNorm2d(channels),
                        tnn.ReLU(),
                    )
                )
                channels_in = channels
            self.blocks = tnn.ModuleList(blocks)
            self.scores = tnn.ModuleDict(
                {str(layers[tap - 1][0]): tnn.Linear(layers[tap - 1][0], CLASSES) for tap in taps}
            )
            shape = (len(taps), CLASSES) if per_class else (len(taps),)
            self.weights = tnn.Parameter(torch.full(shape, 1 / len(taps)))

        def forward(self, x):
            fused = 0
            for number, (block, (channels, _)) in enumerate(
                zip(self.blocks, layers, strict=True), start=1
            ):
                x = block(x)
                if number in taps:
                    branch = self.scores[str(channels)](x.mean((2, 3)))
                    fused = fused + self.weights[taps.index(number)] * branch
            return fused

    model = Torch()
    height, width, channels = network.image_shape
    images = torch.randn(network.batch_size, channels, height, width)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(network.batch_size) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.95, weight_decay=5e-4)
    forward = torch.compile(model) if compiled else model

    def take() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(forward(images), labels).backward()
        optimizer.step()

    return Step(take)


Contender = Callable[[Network], Step]
CONTENDERS: dict[str, Contender] = {
    contender.__name__: contender
    for contender in (ours, flax, torch_eager, torch_channels_last, torch_compiled, product, epoch)
}
