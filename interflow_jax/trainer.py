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

from interflow_jax import steps as pure
from interflow_jax.data import batches, recipes, splits
from interflow_jax.data.dataset import Dataset, check_labels
from interflow_jax.data.preprocessing import (
    Preprocessing,
    crop_draws,
    epoch_keys,
    initial_key,
)
from interflow_jax.dispatch import compiled
from interflow_jax.metrics import EvalMetrics, TrainMetrics
from interflow_jax.model import Interflow, Prediction
from interflow_jax.optimizer import learning_rate_schedule, make_optimizer
from interflow_jax.pretrained import with_backbone
from interflow_jax.recalibration import recalibrate
from interflow_jax.steps import TrainState
from interflow_jax.training_recipe import RecipeName, default_recipe, training_recipe


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
      epochs: of the whole training; None where an optimiser is given without them.
      steps: optimiser steps per epoch.
      labels: the branches' labels, shallow to deep: the model's own, or 1 to their number.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        *,
        epochs: int | None = None,
        recipe: RecipeName | None = None,
        batch_size: int | None = None,
        optimizer: optax.GradientTransformation | None = None,
        preprocessing: Preprocessing | None = None,
        augment: bool | None = None,
        resized_crop: bool = False,
        auxiliary_loss: float = 0.0,
        auxiliary_mean: float = 0.0,
        distillation: float = 0.0,
        label_smoothing: float | None = None,
        mixup: float = 0.0,
        balanced: bool = False,
        ema: float | None = None,
        pretrained: Any = None,
        progress: splits.Progress = iter,
    ):
        """Reads the data if it fits; compiles nothing yet.

        Args:
          model: any Linen module that returns a `Prediction`.
          dataset: its images are uint8.
          epochs: of the whole training, which the schedule spans and no training exceeds. None for
            the paper's on the dataset, else one; with an `optimizer`, for any number.
          recipe: "paper" (IV-B) or "modern", for what the arguments below leave at None (see
            `training_recipe`); None for "modern" on arrays and folders of one's own, and for
            "paper" on all else and with an `optimizer`.
          batch_size: over all devices.
          optimizer: any of optax.
          preprocessing: None to normalise by the channels' mean and deviation in training.
          augment, resized_crop: without `preprocessing`, whether training images are cropped and
            flipped, and how (see `Preprocessing`).
          auxiliary_loss, auxiliary_mean, distillation, label_smoothing, mixup, ema: as in
            `train_step`.
          balanced: whether classes weigh alike in the losses, however many examples they have.
          pretrained: variables that `init` starts from, the backbone's or a whole model's, as in
            `with_backbone`.
          progress: wraps the chunks of a split that is read whole, as `tqdm.tqdm` does.

        Raises:
          ValueError: for a batch size that is not a multiple of the number of devices or exceeds
            the training split, epochs below 1, what is no optimiser, a model that returns no
            `Prediction`, draws to predict, has fewer classes than the dataset or not one label per
            branch, labels that are no class's, or pretrained variables that do not fit.
          splits.UnreadableExamplesError: for data that cannot be read.
        """
        self.mesh = batches.device_mesh()
        paper = recipes.recipe(dataset.name)
        if epochs is None and optimizer is None:
            epochs = 1 if paper.train_examples is None else paper.epochs
        if recipe is None:
            recipe = "paper" if optimizer else default_recipe(dataset.name, not dataset.source)
        way = training_recipe(recipe, epochs or 1, batch_size)
        batch_size = way.batch_size
        label_smoothing = way.label_smoothing if label_smoothing is None else label_smoothing
        ema = way.ema if ema is None else ema
        if batch_size % self.mesh.size or not 1 <= batch_size <= len(dataset.train):
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of the {self.mesh.size} "
                f"device(s), at most the {len(dataset.train)} training examples"
            )
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs is {epochs}; choose 1 or more")
        self.steps = len(dataset.train) // batch_size
        if optimizer is None:
            schedule = learning_rate_schedule(
                self.steps * (epochs or 1),
                paper.drop_after,
                way.learning_rate,
                way.schedule,
                round(self.steps * way.warmup_epochs),
            )
            frozen = ("backbone",) if isinstance(model, Interflow) and model.frozen else ()
            optimizer = make_optimizer(
                schedule, way.optimizer, way.momentum, way.weight_decay, frozen
            )
        self.model, self.batch_size, self.epochs = model, batch_size, epochs
        self.optimizer, self._pretrained, self._ema = optimizer, pretrained, ema
        self._initialize = pure.make_initializer(model, optimizer, dataset.image_shape)
        state = self._begin(jax.eval_shape(self._initialize, initial_key(0)))
        images = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
        prediction = jax.eval_shape(partial(pure.predict, model), state, images)
        self.labels = _branch_labels(model, prediction, dataset)
        given = {"train": dataset.train, "test": dataset.test, "validation": dataset.validation}
        self._splits = {name: split for name, split in given.items() if split is not None}
        for name, split in self._splits.items():
            if isinstance(split, splits.ArraySplit):
                check_labels(split.labels, len(dataset.class_names), f"{name} labels")
        self._resident: dict[str, tuple[Array, Array]] = {}
        # Without validation: it must not decide whether training streams, which rounds differently.
        examples = len(dataset.train) + len(dataset.test)
        nbytes = examples * int(np.prod(dataset.image_shape))
        streamed = preprocessing.resized_crop if preprocessing else resized_crop
        if not streamed and batches.fits(nbytes):
            for name, split in self._splits.items():
                self._splits[name] = arrays = splits.into_memory(split, progress)
                check_labels(arrays.labels, len(dataset.class_names), f"{name} labels")
                self._resident[name] = batches.replicate((arrays.images, arrays.labels), self.mesh)
        self.dataset = dataset = dataset._replace(**self._splits)
        if preprocessing is None:
            statistics = splits.channel_statistics(dataset.train, progress)
            if augment is None:
                augment = paper.augment if way.augment is None else True
            preprocessing = Preprocessing(*statistics, augment, resized_crop)
        self.preprocessing = preprocessing
        class_weights: tuple[float, ...] = ()
        if balanced:
            counts = splits.class_counts(dataset.train, len(dataset.class_names))
            shares = counts.sum() / (len(counts) * np.maximum(counts, 1))
            beyond = prediction.logits.shape[-1] - len(counts)  # logits of no class
            class_weights = (*shares.tolist(), *(1.0,) * beyond)
        step = partial(
            pure.train_step,
            model,
            optimizer,
            auxiliary_loss=auxiliary_loss,
            auxiliary_mean=auxiliary_mean,
            distillation=distillation,
            label_smoothing=label_smoothing,
            mixup=mixup,
            class_weights=class_weights,
            ema=ema,
        )
        supervised = bool(auxiliary_loss or auxiliary_mean or distillation)
        evaluation = partial(pure.eval_step, model, supervised=supervised)
        programs = compiled(model, step, evaluation, preprocessing, self.mesh, batch_size)
        self._train, self._evaluate, self._predict, self._images_of = programs

    def __repr__(self) -> str:
        model, shape = type(self.model).__name__, " x ".join(map(str, self.dataset.image_shape))
        return (
            f"<Trainer: {model} with {len(self.labels)} branches, {self.dataset.name}, "
            f"{len(self.dataset.train):,} images of {shape} in {self.steps} steps of "
            f"{self.batch_size}, {self.epochs or 'any'} epochs, {self.mesh.size} device(s)>"
        )

    def init(self, seed: int = 0) -> TrainState:
        """A new state on every device; raises ValueError for a seed of more than 32 bits."""
        _check_seed(seed)
        state = self._begin(self._initialize(initial_key(seed)))
        state = state.with_average() if self._ema else state
        return batches.replicate(state, self.mesh)

    def _begin(self, state: TrainState) -> TrainState:
        """The state with the pretrained variables, if there are any."""
        if self._pretrained is None:
            return state
        others = with_backbone(state.variables, self._pretrained)
        params, batch_stats = others.pop("params"), others.pop("batch_stats")
        return state.replace(params=params, batch_stats=batch_stats, collections=others)

    def put(self, state: TrainState) -> TrainState:
        """Copies a state, such as one that was saved, to every device."""
        _check_usable(state)
        # `replicate` reuses what a single device already has, and training consumes it.
        return batches.replicate(jax.tree.map(jnp.array, state), self.mesh)

    def train_epoch(
        self, state: TrainState, epoch: int, seed: int = 0
    ) -> tuple[TrainState, TrainMetrics]:
        """Trains for an epoch, counted from 0.

        Returns:
          The state after it (the one given is consumed), and the metrics of its steps, [steps].

        Raises:
          ValueError: for an epoch beyond the training, a state that has been trained, or a seed of
            more than 32 bits.
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
          as `train_epoch`.
        """
        _check_seed(seed)
        if epoch < 0 or (self.epochs is not None and epoch >= self.epochs):
            raise ValueError(
                f"epoch is {epoch}; they count from 0, and this Trainer was made for "
                f"epochs={self.epochs or 'any'}, which its learning rate's schedule spans: give it "
                "as many epochs as you train, or an optimizer"
            )
        _check_usable(state)
        keys = epoch_keys(seed, epoch)
        order = batches.training_order(keys, len(self.dataset.train))
        draws = partial(crop_draws, keys, self.batch_size)
        draws = draws if self.preprocessing.resized_crop else None
        for steps, source in self._sources("train", order, first, self.steps, draws):
            state, metrics = self._train(state, source, keys, steps)
            yield state, jax.tree.map(np.asarray, metrics)

    def evaluate(
        self,
        state: TrainState,
        split: str | splits.Split = "test",
        between: Callable[[], Any] = lambda: None,
    ) -> EvalMetrics:
        """Sums over every example of a split, "test", "validation" or "train".

        Any other `Split` will do, and is streamed. `between` is called after every dispatch; what
        it raises ends the evaluation.

        Raises:
          ValueError: for a split that the dataset does not have.
          splits.UnreadableExamplesError: for streamed examples that cannot be read.
        """
        if isinstance(split, str) and split not in self._splits:
            raise ValueError(f"split is {split!r}; the dataset has {', '.join(self._splits)}")
        _check_usable(state)
        examples = len(self._splits[split] if isinstance(split, str) else split)
        order = batches.evaluation_order(examples, self.batch_size)
        parts = []
        for steps, source in self._sources(split, order, 0, len(order) // self.batch_size):
            metrics = self._evaluate(state, source, steps, jnp.asarray(examples))
            parts.append(jax.tree.map(np.asarray, metrics))
            between()
        stacked: EvalMetrics = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        # Of float32, the difference of sums of squares would be rounding alone.
        exact = jax.tree.map(np.float64, stacked.weight_sums)
        sums = stacked._replace(weights=None, answers=None, weight_sums=exact)
        sums = jax.tree.map(lambda array: array.sum(axis=0), sums)
        sums = sums._replace(answers=np.asarray(stacked.answers).reshape(-1, 2)[:examples])
        if stacked.weights is None:
            return sums
        # Exact where they are equal: float64 holds the products of float32 and counts.
        weights = np.average(stacked.weights, axis=0, weights=stacked.count)
        return sums._replace(weights=weights.astype(np.float32))

    def predict(self, state: TrainState, images: np.ndarray) -> Prediction:
        """The model's prediction in evaluation mode, for any number of images.

        Args:
          state: its variables are used.
          images: [images, height, width, channels], uint8, of the dataset's shape.

        Raises:
          ValueError: for images of another shape or dtype, or none.
        """
        _check_usable(state)
        program = partial(self._predict, state)
        shape = self.dataset.image_shape
        return pure.predict_in_batches(program, images, shape, self.batch_size)

    def recalibrate(self, state: TrainState) -> TrainState:
        """A state with BatchNorm's statistics by one pass over the training images (`recalibrate`).

        They are not augmented, and in an order drawn once: as sorted by class, a batch of one class
        would be normalised by itself. The last ones that do not fill a batch are left out.

        Raises:
          splits.UnreadableExamplesError: for streamed examples that cannot be read.
        """
        _check_usable(state)
        order = batches.training_order(epoch_keys(0, 0), len(self.dataset.train))
        images = (
            self._images_of(source, step)
            for steps, source in self._sources("train", order, 0, self.steps)
            for step in steps
        )
        after = recalibrate(self.model, state, images, key=jax.random.key(0))
        return after.replace(batch_stats=batches.replicate(after.batch_stats, self.mesh))

    def _sources(
        self,
        split: str | splits.Split,
        order: np.ndarray,
        first: int,
        last: int,
        draws: Callable[[int], np.ndarray] | None = None,
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Pairs each dispatch's steps, from `first` to before `last`, with its batches."""
        chunks = batches.chunks(first, last, batches.steps_per_dispatch())
        if isinstance(split, str) and split in self._resident:
            orders = batches.replicate(order, self.mesh)
            source = batches.Resident(*self._resident[split], orders)
            yield from ((steps, source) for steps in chunks)
            return
        examples = self._splits[split] if isinstance(split, str) else split
        name = f"{split} labels" if isinstance(split, str) else "labels"
        for steps, window in batches.streamed_batches(
            examples, order, chunks, self.mesh, self.batch_size, draws
        ):
            for shard in window.labels.addressable_shards:
                labels = np.asarray(shard.data).ravel()
                check_labels(labels, len(self.dataset.class_names), name)
            yield steps, window


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:  # JAX would take it modulo 2^32
        raise ValueError(f"seed is {seed}; choose 0 to {2**32 - 1}")


def _check_usable(state: TrainState) -> None:
    leaves = jax.tree.leaves(state)
    if any(isinstance(leaf, Array) and leaf.is_deleted() for leaf in leaves):
        raise ValueError("this state has been trained; use the one returned")


def _branch_labels(model: nn.Module, prediction: Any, dataset: Dataset) -> tuple[Any, ...]:
    """The labels of a model's branches; raises ValueError for one that does not fit the dataset."""
    if not isinstance(prediction, Prediction):
        raise ValueError(
            f"{type(model).__name__} returns no Prediction; wrap it in Interflow, or let it return "
            "Prediction(logits, branch_logits, weights)"
        )
    classes, branches = prediction.logits.shape[-1], prediction.branch_logits.shape[1]
    if classes < len(dataset.class_names):  # a label without a logit would make the loss NaN
        raise ValueError(
            f"the model tells {classes} classes apart; {dataset.name} has "
            f"{len(dataset.class_names)}: build it for as many"
        )
    labels = getattr(model, "labels", None)  # which may be another thing: a field of the model
    labels = tuple(labels if isinstance(labels, list | tuple) else range(1, branches + 1))
    if len(labels) != branches:
        raise ValueError(f"labels are {labels} for {branches} branches; give one each, or none")
    return labels
