"""Trains any model on any dataset: whole epochs, all devices, exact order and draws."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from interflow_jax import training
from interflow_jax.data import batches, splits
from interflow_jax.data.batches import Resident, Window
from interflow_jax.data.datasets import Dataset, recipe
from interflow_jax.data.preprocessing import (
    EpochKeys,
    Preprocessing,
    crop_draws,
    dropout_key,
    epoch_keys,
    for_training,
    initial_key,
    normalize,
)
from interflow_jax.model import Prediction
from interflow_jax.ops.convolution import cpu_compiler_options
from interflow_jax.optimizer import learning_rate_schedule, make_optimizer
from interflow_jax.pretrained import with_backbone
from interflow_jax.switch import switch_arguments
from interflow_jax.training import BATCH_SIZE, EvalMetrics, TrainMetrics, TrainState


class Trainer:
    """Trains a model that returns a `Prediction`; runs of several seeds share its programs.

    Every draw is a function of (seed, epoch, step). A last batch that is not full is left out of an
    epoch; another epoch's order leaves out other examples. Splits that fit stay on the devices;
    others, and those from which random boxes are resized, are streamed.

    Attributes:
      model, optimizer, batch_size, preprocessing: what training uses.
      dataset: as given; its splits are in memory if they fit.
      mesh: all devices, of all processes after `jax.distributed.initialize`, which then do the same
        in the same order. The batch is sharded over them, the state is on each.
      steps: optimiser steps per epoch.
      labels: the branches' labels, shallow to deep: the model's own, or 1 to their number.
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
        resized_crop: bool = False,
        auxiliary_loss: float = 0.0,
        auxiliary_mean: float = 0.0,
        pretrained: Any = None,
        progress: splits.Progress = iter,
    ):
        """Reads the data if it fits; compiles nothing yet.

        Args:
          model: any Linen module that returns a `Prediction`.
          dataset: its images are uint8.
          epochs: of the whole training, for the paper's schedule.
          batch_size: over all devices.
          optimizer: None for the paper's (IV-B), with the drop of the dataset's recipe.
          preprocessing: None to normalise by the channels' mean and deviation in training.
          augment, resized_crop: without `preprocessing`, whether training images are cropped and
            flipped, and how (see `Preprocessing`).
          auxiliary_loss, auxiliary_mean: as in `train_step`.
          pretrained: the backbone's variables that `init` starts from, as in `with_backbone`.
          progress: wraps the chunks of a split that is read whole, as `tqdm.tqdm` does.

        Raises:
          ValueError: for a batch size that is not a multiple of the number of devices or exceeds
            the training split, a model that returns no `Prediction`, has fewer classes than the
            dataset or not one label per branch, or pretrained variables that do not fit its
            backbone.
          splits.UnreadableExamplesError: for data that cannot be read.
        """
        self.mesh = batches.device_mesh()
        if batch_size % self.mesh.size or not 1 <= batch_size <= len(dataset.train):
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of the {self.mesh.size} "
                f"device(s), at most the {len(dataset.train)} training examples"
            )
        self.model, self.batch_size = model, batch_size
        prediction = _prediction_shapes(model, dataset.image_shape)
        classes = prediction.logits.shape[-1]
        if classes < len(dataset.class_names):  # a label without a logit would make the loss NaN
            raise ValueError(
                f"the model tells {classes} classes apart; {dataset.name} has "
                f"{len(dataset.class_names)}: build it for as many"
            )
        self.labels = _branch_labels(model, prediction.branch_logits.shape[1])
        self.steps = len(dataset.train) // batch_size
        given = {"train": dataset.train, "test": dataset.test, "validation": dataset.validation}
        self._splits = {name: split for name, split in given.items() if split is not None}
        self._resident: dict[str, tuple[Array, Array]] = {}
        # Without validation: it must not decide whether training streams, which rounds differently.
        examples = len(dataset.train) + len(dataset.test)
        nbytes = examples * int(np.prod(dataset.image_shape))
        streamed = preprocessing.resized_crop if preprocessing else resized_crop
        if not streamed and batches.fits(nbytes):
            for name, split in self._splits.items():
                self._splits[name] = arrays = splits.into_memory(split, progress)
                self._resident[name] = batches.put(arrays, self.mesh)
        self.dataset = dataset = dataset._replace(**self._splits)
        if preprocessing is None:
            statistics = splits.channel_statistics(dataset.train, progress)
            preprocessing = Preprocessing(*statistics, augment, resized_crop)
        self.preprocessing = preprocessing
        if optimizer is None:
            drop_after = recipe(dataset.name).drop_after
            schedule = learning_rate_schedule(self.steps * epochs, drop_after)
            frozen = ("backbone",) if getattr(model, "frozen", False) else ()
            optimizer = make_optimizer(schedule, frozen=frozen)
        self.optimizer, self._pretrained = optimizer, pretrained
        self._initialize = training.make_initializer(model, optimizer, dataset.image_shape)
        self._begin(jax.eval_shape(self._initialize, initial_key(0)))
        losses = {"auxiliary_loss": auxiliary_loss, "auxiliary_mean": auxiliary_mean}
        step = partial(training.train_step, model, optimizer, **losses)
        supervised = bool(auxiliary_loss or auxiliary_mean)
        evaluation = partial(training.eval_step, model, supervised=supervised)
        programs = _programs(model, step, evaluation, preprocessing, self.mesh, batch_size)
        self._train, self._evaluate, self._predict = programs

    def init(self, seed: int = 0) -> TrainState:
        """A new state on every device."""
        state = self._begin(self._initialize(initial_key(seed)))
        return batches.replicate(state, self.mesh)

    def _begin(self, state: TrainState) -> TrainState:
        """The state with the pretrained variables, if there are any."""
        if self._pretrained is None:
            return state
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return state.replace(**with_backbone(variables, self._pretrained))

    def put(self, state: TrainState) -> TrainState:
        """Copies a state, such as one that was saved, to every device."""
        # `replicate` reuses what a single device already has, and training consumes it.
        return batches.replicate(jax.tree.map(jnp.array, state), self.mesh)

    def train_epoch(
        self, state: TrainState, epoch: int, seed: int = 0
    ) -> tuple[TrainState, TrainMetrics]:
        """Trains for an epoch, counted from 0.

        Returns:
          The state after it (the one given is consumed), and the metrics of its steps, [steps].

        Raises:
          splits.UnreadableExamplesError: for streamed examples that cannot be read.
        """
        parts = []
        for after, metrics in self.dispatches(state, epoch, seed):
            state = after
            parts.append(metrics)
        return state, jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def dispatches(
        self, state: TrainState, epoch: int, seed: int = 0, first: int = 0
    ) -> Iterator[tuple[TrainState, TrainMetrics]]:
        """Trains from step `first` of an epoch to its end, a few steps at a time.

        Yields:
          The state after them (the one before is consumed), and their metrics, [steps]. Training
          that goes on from such a state, with `first` its next step, ends bit for bit the same.

        Raises:
          splits.UnreadableExamplesError: for streamed examples that cannot be read.
        """
        keys = epoch_keys(seed, epoch)
        order = batches.training_order(keys, len(self.dataset.train))
        draws = partial(crop_draws, keys, self.batch_size)
        draws = draws if self.preprocessing.resized_crop else None
        for steps, source in self._sources("train", order, first, self.steps, draws):
            state, metrics = self._train(state, source, keys, steps)
            yield state, jax.tree.map(np.asarray, metrics)

    def evaluate(
        self, state: TrainState, split: str = "test", between: Callable[[], Any] = lambda: None
    ) -> EvalMetrics:
        """Sums over every example of a split, "test", "validation" or "train".

        `between` is called after every dispatch; what it raises ends the evaluation.

        Raises:
          ValueError: for a split that the dataset does not have.
          splits.UnreadableExamplesError: for streamed examples that cannot be read.
        """
        if split not in self._splits:
            raise ValueError(f"split is {split!r}; the dataset has {', '.join(self._splits)}")
        examples = len(self._splits[split])
        order = batches.evaluation_order(examples, self.batch_size)
        parts = []
        for steps, source in self._sources(split, order, 0, len(order) // self.batch_size):
            metrics = self._evaluate(state, source, steps, jnp.asarray(examples))
            parts.append(jax.tree.map(np.asarray, metrics))
            between()
        sums = jax.tree.map(lambda *arrays: np.concatenate(arrays).sum(axis=0), *parts)
        return sums._replace(weights=parts[-1].weights[-1])

    def predict(self, state: TrainState, images: np.ndarray) -> Prediction:
        """The model's prediction in evaluation mode, for any number of images.

        Args:
          state: its parameters and BatchNorm statistics are used.
          images: [images, height, width, channels], uint8, of the dataset's shape.

        Raises:
          ValueError: for images of another shape or dtype, or none.
        """
        program = partial(self._predict, state)
        shape = self.dataset.image_shape
        return training.predict_in_batches(program, images, shape, self.batch_size)

    def _sources(
        self,
        split: str,
        order: np.ndarray,
        first: int,
        last: int,
        draws: Callable[[int], np.ndarray] | None = None,
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Pairs each dispatch's steps, from `first` to before `last`, with its batches."""
        chunks = batches.chunks(first, last, batches.steps_per_dispatch())
        if split in self._resident:
            return batches.resident_batches(self._resident[split], order, chunks, self.mesh)
        examples = self._splits[split]
        return batches.streamed_batches(examples, order, chunks, self.mesh, self.batch_size, draws)


def _prediction_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> Prediction:
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = partial(model.init_with_output, **switch_arguments(model, False))
    prediction, _ = jax.eval_shape(init, jax.random.key(0), images)
    if not isinstance(prediction, Prediction):
        raise ValueError(
            f"{type(model).__name__} returns no Prediction; wrap it in Interflow, or let it return "
            "Prediction(logits, branch_logits, weights)"
        )
    return prediction


def _branch_labels(model: nn.Module, branches: int) -> tuple[Any, ...]:
    labels = getattr(model, "labels", None)
    labels = tuple(range(1, branches + 1) if labels is None else labels)
    if len(labels) != branches:
        raise ValueError(f"labels are {labels} for {branches} branches; give one each, or none")
    return labels


def _programs(
    model: nn.Module,
    train_step: Any,
    eval_step: Any,
    preprocessing: Preprocessing,
    mesh: Mesh,
    batch_size: int,
) -> tuple[Any, Any, Any]:
    """Jits whole dispatches: the batch is sharded over the mesh, results are on every device."""
    sharded = NamedSharding(mesh, PartitionSpec("batch"))
    replicated = batches.replicated(mesh)
    jit = partial(jax.jit, out_shardings=replicated, compiler_options=cpu_compiler_options())

    def batch_of(source: Resident | Window, step: Array) -> tuple[Array, Array]:
        return jax.lax.with_sharding_constraint(source.batch(step, batch_size), sharded)

    @partial(jit, donate_argnums=0)
    def train(state: TrainState, source: Resident | Window, keys: EpochKeys, steps: Array):
        def step_once(state: TrainState, step: Array):
            images, labels = batch_of(source, step)
            images = for_training(preprocessing, images, keys, step)
            return train_step(state, images, labels, key=dropout_key(keys, step))

        return _scan(step_once, state, steps)

    @jit
    def evaluate(state: TrainState, source: Resident | Window, steps: Array, examples: Array):
        def step_once(carry: None, step: Array):
            images, labels = batch_of(source, step)
            mask = step * batch_size + jnp.arange(batch_size) < examples
            images = normalize(preprocessing, images)
            return carry, eval_step(state, images, labels, mask)

        return _scan(step_once, None, steps)[1]

    @jit
    def predict(state: TrainState, images: Array) -> Prediction:
        images = jax.lax.with_sharding_constraint(images, sharded)
        return training.predict(model, state, normalize(preprocessing, images))

    return train, evaluate, predict


def _scan(body: Callable, carry: Any, steps: Array) -> Any:
    """`lax.scan`, without a loop for a single step (see `batches.steps_per_dispatch`)."""
    if len(steps) > 1:
        return jax.lax.scan(body, carry, steps)
    carry, result = body(carry, steps[0])
    return carry, jax.tree.map(lambda leaf: leaf[None], result)
