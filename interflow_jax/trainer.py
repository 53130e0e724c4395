"""Trains any model on any dataset: whole epochs, all local devices, exact order and draws."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from interflow_jax.data import batches, splits
from interflow_jax.data.batches import Resident, Window
from interflow_jax.data.datasets import Dataset, recipe
from interflow_jax.data.preprocessing import (
    EpochKeys,
    Preprocessing,
    dropout_key,
    epoch_keys,
    for_training,
    initial_key,
    normalize,
)
from interflow_jax.model import Prediction
from interflow_jax.ops.convolution import cpu_compiler_options
from interflow_jax.optimizer import learning_rate_schedule, make_optimizer
from interflow_jax.switch import switch_arguments
from interflow_jax.training import (
    BATCH_SIZE,
    EvalMetrics,
    TrainMetrics,
    TrainState,
    eval_step,
    make_initializer,
    predict,
    train_step,
)

Reading = Callable[[list, str], Iterable]
"""Wraps a list that is slow to go through, named in words, as `tqdm.tqdm(list, desc=words)`."""


class Trainer:
    """Trains a model that returns a `Prediction`; runs of several seeds share its programs.

    The batch is sharded over all local devices, the state is on each. Every draw is a function of
    (seed, epoch, step), so that training can be taken up anywhere.

    Attributes:
      model, dataset, optimizer, batch_size, preprocessing: what it was made with.
      steps: optimiser steps per epoch. A last batch that is not full is left out, and another
        epoch's order leaves out other examples.
      labels: of the branches, shallow to deep: the model's own, or 1 to their number.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        *,
        epochs: int = 1,
        batch_size: int = BATCH_SIZE,
        optimizer: optax.GradientTransformation | None = None,
        preprocessing: Preprocessing | None = None,
        augment: bool = False,
        auxiliary_loss: float = 0.0,
        auxiliary_mean: float = 0.0,
        reading: Reading = lambda chunks, _: chunks,
    ):
        """Puts the data on the devices if it fits, and readies the programs.

        Args:
          model: any Linen module that returns a `Prediction`.
          dataset: its images are uint8.
          epochs: of the whole training, for the paper's schedule.
          batch_size: over all devices.
          optimizer: None for the paper's, with its learning rate's drop.
          preprocessing: None for normalisation by the training split's mean and deviation.
          augment: without `preprocessing`, whether training images are cropped and flipped.
          auxiliary_loss, auxiliary_mean: as in `train_step`.
          reading: told of what is slow to read.

        Raises:
          ValueError: for a batch that the devices do not divide, or larger than the training split.
          splits.UnreadableExamplesError: for data that cannot be read.
        """
        self._mesh = batches.local_mesh()
        if batch_size < 1 or batch_size % self._mesh.size:
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of the {self._mesh.size} "
                "device(s)"
            )
        self.steps = len(dataset.train) // batch_size
        if not self.steps:
            raise ValueError(
                f"batch_size is {batch_size}, but there are {len(dataset.train)} training "
                "examples; choose a smaller batch"
            )
        given = {"train": dataset.train, "test": dataset.test, "validation": dataset.validation}
        named = {name: split for name, split in given.items() if split is not None}
        self._resident: dict[str, tuple[Array, Array]] = {}
        if _fits(sum(map(len, named.values())) * int(np.prod(dataset.image_shape))):
            for name, split in named.items():
                words = f"{dataset.name} {name}"
                named[name] = splits.into_memory(split, partial(_read_as, reading, words))
                self._resident[name] = batches.put(named[name], self._mesh)
            dataset = dataset._replace(**named)
        if preprocessing is None:
            progress = partial(_read_as, reading, "channel statistics")
            statistics = splits.channel_statistics(dataset.train, progress)
            preprocessing = Preprocessing(*statistics, augment)
        if optimizer is None:
            drop_after = recipe(dataset.name).drop_after
            optimizer = make_optimizer(learning_rate_schedule(self.steps * epochs, drop_after))
        self.model, self.dataset, self.optimizer = model, dataset, optimizer
        self.batch_size, self.preprocessing = batch_size, preprocessing
        self.labels = _labels(model, dataset.image_shape)
        self.initialize = make_initializer(model, optimizer, dataset.image_shape)
        self._make_programs(auxiliary_loss, auxiliary_mean)

    def init(self, seed: int = 0) -> TrainState:
        """A new state on every device."""
        return self.put(self.initialize(initial_key(seed)))

    def put(self, state: TrainState) -> TrainState:
        """Copies a state, as one that was saved, to every device."""
        return jax.device_put(state, batches.replicated(self._mesh))

    def train_epoch(
        self, state: TrainState, epoch: int, seed: int = 0
    ) -> tuple[TrainState, TrainMetrics]:
        """Trains for an epoch, counted from 0.

        Returns:
          The state after it (the one given is consumed), and the metrics, [steps] each.
        """
        parts = []
        for after, metrics in self.dispatches(state, epoch, seed):
            state = after
            parts.append(metrics)
        return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def dispatches(
        self, state: TrainState, epoch: int, seed: int = 0, first: int = 0
    ) -> Iterator[tuple[TrainState, TrainMetrics]]:
        """Trains from step `first` of an epoch to its end, a few steps at a time.

        Yields:
          The state after some steps (the one before is consumed), and their metrics, [steps] each.
        """
        keys = epoch_keys(seed, epoch)
        order = batches.training_order(keys, len(self.dataset.train))
        for steps, source in self._sources("train", order, first, self.steps):
            state, metrics = self._train(state, source, keys, steps)
            yield state, jax.tree.map(np.asarray, metrics)

    def evaluate(
        self,
        state: TrainState,
        split: Literal["test", "validation"] = "test",
        between: Callable[[], None] = lambda: None,
    ) -> EvalMetrics:
        """Sums over every example of a split; `between` is called after every dispatch."""
        examples = len(getattr(self.dataset, split))
        order = batches.evaluation_order(examples, self.batch_size)
        parts = []
        for steps, source in self._sources(split, order, 0, len(order) // self.batch_size):
            parts.append(self._evaluate(state, source, steps, jnp.asarray(examples)))
            jax.block_until_ready(parts[-1])
            between()
        sums = jax.tree.map(lambda *leaves: np.sum(np.concatenate(leaves), axis=0), *parts)
        return sums._replace(weights=np.asarray(parts[-1].weights[-1]))

    def predict(self, state: TrainState, images: np.ndarray) -> Prediction:
        """The model's prediction in evaluation mode, for any number of images.

        Args:
          state: its parameters and BatchNorm statistics are used.
          images: [images, height, width, channels], uint8.

        Raises:
          ValueError: for no image.
        """
        logits, branch_logits, weights = [], [], None
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(batch)), *[(0, 0)] * (images.ndim - 1)]
            prediction = self._predict(state, np.pad(batch, padding))
            logits.append(prediction.logits[: len(batch)])
            branch_logits.append(prediction.branch_logits[: len(batch)])
            weights = prediction.weights
        if weights is None:
            raise ValueError(f"images have shape {images.shape}; give one image or more")
        return Prediction(jnp.concatenate(logits), jnp.concatenate(branch_logits), weights)

    def _sources(
        self, split: str, order: np.ndarray, first: int, last: int
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Pairs each dispatch's steps, from `first` to before `last`, with its batches."""
        chunks = batches.chunks(first, last, _steps_per_dispatch())
        if split in self._resident:
            return batches.resident_batches(self._resident[split], order, chunks, self._mesh)
        examples = getattr(self.dataset, split)
        return batches.streamed_batches(examples, order, chunks, self._mesh, self.batch_size)

    def _make_programs(self, auxiliary_loss: float, auxiliary_mean: float) -> None:
        """Jits dispatches of steps, the batch sharded over the mesh, the state on every device."""
        model, optimizer, preprocessing = self.model, self.optimizer, self.preprocessing
        sharded = NamedSharding(self._mesh, PartitionSpec("batch"))

        def batch_of(source: Resident | Window, step: Array) -> tuple[Array, Array]:
            return jax.lax.with_sharding_constraint(source.batch(step, self.batch_size), sharded)

        jit = partial(
            jax.jit,
            out_shardings=batches.replicated(self._mesh),
            compiler_options=cpu_compiler_options(),
        )

        @partial(jit, donate_argnums=0)
        def train(
            state: TrainState, source: Resident | Window, keys: EpochKeys, steps: Array
        ) -> tuple[TrainState, TrainMetrics]:
            def step_once(state: TrainState, step: Array):
                images, labels = batch_of(source, step)
                images = for_training(preprocessing, images, keys, step)
                return train_step(
                    model,
                    optimizer,
                    state,
                    images,
                    labels,
                    key=dropout_key(keys, step),
                    auxiliary_loss=auxiliary_loss,
                    auxiliary_mean=auxiliary_mean,
                )

            return _scan(step_once, state, steps)

        @jit
        def evaluate(
            state: TrainState, source: Resident | Window, steps: Array, examples: Array
        ) -> EvalMetrics:
            def step_once(nothing: None, step: Array):
                images, labels = batch_of(source, step)
                mask = step * self.batch_size + jnp.arange(self.batch_size) < examples
                images = normalize(preprocessing, images)
                return nothing, eval_step(model, state, images, labels, mask)

            return _scan(step_once, None, steps)[1]

        @jit
        def predicted(state: TrainState, images: Array) -> Prediction:
            images = jax.lax.with_sharding_constraint(images, sharded)
            return predict(model, state, normalize(preprocessing, images))

        self._train, self._evaluate, self._predict = train, evaluate, predicted


def _read_as(reading: Reading, words: str, chunks: list) -> Iterable:
    return reading(chunks, words)


def _labels(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """The branches' labels: what the model offers, or 1 to their number."""
    labels = getattr(model, "labels", None)
    if labels is not None:
        return tuple(labels)

    def predicted(key: Array) -> Prediction:
        images = jnp.zeros((1, *image_shape))
        return model.init_with_output(key, images, **switch_arguments(model, False))[0]

    branches = jax.eval_shape(predicted, jax.random.key(0)).branch_logits.shape[1]
    return tuple(range(1, branches + 1))


def _steps_per_dispatch() -> int:
    """How many steps to hand to the devices at once.

    One on CPU, where XLA's convolutions lose their fast path inside a loop (5 to 14 times slower,
    measured); elsewhere enough to keep the host idle and few enough that progress is seen.
    """
    return 1 if jax.default_backend() == "cpu" else 32


def _scan(body: Callable, carry: Any, steps: Array) -> Any:
    """`lax.scan`, without a loop for a single step (see `_steps_per_dispatch`)."""
    if len(steps) > 1:
        return jax.lax.scan(body, carry, steps)
    carry, result = body(carry, steps[0])
    return carry, jax.tree.map(lambda leaf: leaf[None], result)


def _fits(nbytes: int) -> bool:
    """Whether every device may hold data of `nbytes`, which the host reads first.

    A quarter of the memory at most, of each device and of the host; CPU devices share the host's.
    """
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    statistics = jax.local_devices()[0].memory_stats() or {}
    device_memory = statistics.get("bytes_limit", host_memory)
    return nbytes <= min(host_memory // copies, device_memory) // 4
