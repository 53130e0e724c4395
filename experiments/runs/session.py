"""What the runs of a configuration share: the data where the steps run, and their programs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import interflow_jax as ij
from experiments.cli.configuration import Configuration
from experiments.cli.console import reading
from experiments.runs import data
from interflow_jax.data import batches, splits
from interflow_jax.data.batches import Programs
from interflow_jax.data.datasets import Dataset, recipe
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.training import EvalMetrics, TrainState, make_initializer


class Session(NamedTuple):
    """A dataset ready to train on, and the jitted programs.

    Attributes:
      dataset: with the training split cut to `train_size`.
      held: images and labels on the devices, by split; without the splits that stream.
      steps: optimiser steps an epoch; a last batch that is not full is left out, and another
        epoch's order leaves out other examples.
      initialize: from a key to a state (see `make_initializer`).
    """

    dataset: Dataset
    held: dict[str, tuple[jax.Array, jax.Array]]
    mesh: Mesh
    batch_size: int
    epochs: int
    steps: int
    preprocessing: Preprocessing
    model: ij.Interflow
    optimizer: optax.GradientTransformation
    programs: Programs
    initialize: Callable[[jax.Array], TrainState]

    def initial_state(self, key: jax.Array) -> TrainState:
        """A new state, on every device."""
        return jax.device_put(self.initialize(key), batches.replicated(self.mesh))

    def batches(self, split: str, order: np.ndarray, first: int, last: int) -> Iterator[Any]:
        """Pairs each dispatch's steps, from `first` to before `last`, with its source."""
        chunks = batches.chunks(first, last, batches.steps_per_dispatch())
        if split in self.held:
            yield from batches.resident_batches(self.held[split], order, chunks, self.mesh)
            return
        examples = getattr(self.dataset, split)
        with _reading(self.dataset.name):
            yield from batches.streamed_batches(examples, order, chunks, self.mesh, self.batch_size)

    def evaluate(self, state: TrainState, between: Callable[[], None]) -> EvalMetrics:
        """Sums over the whole test split; `between` is called after every dispatch."""
        examples = len(self.dataset.test)
        order = batches.evaluation_order(examples, self.batch_size)
        parts = []
        for steps, source in self.batches("test", order, 0, len(order) // self.batch_size):
            parts.append(self.programs.evaluate(state, source, steps, jnp.asarray(examples)))
            jax.block_until_ready(parts[-1])
            between()
        return jax.tree.map(lambda *leaves: np.sum(np.concatenate(leaves), axis=0), *parts)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns what array_record, tfds and the decoders raise, of any type, into one ValueError."""
    try:
        yield
    except Exception as error:
        raise data.unreadable(name, error) from error


def open_session(configuration: Configuration, dataset: Dataset) -> Session:
    """Reads the data, puts it on the devices if it fits, and makes the programs.

    Raises:
      ValueError: for data that cannot be read.
    """
    batch_size = configuration.batch_size
    trained_by = recipe(configuration.dataset)
    number_of_epochs = configuration.resolved_epochs()
    steps = len(dataset.train) // batch_size
    mesh = batches.local_mesh()
    examples = len(dataset.train) + len(dataset.test)
    if batches.fits(examples * int(np.prod(dataset.image_shape))):
        with _reading(dataset.name):
            train, test = (
                splits.into_memory(getattr(dataset, name), reading(f"{dataset.name} {name}"))
                for name in ("train", "test")
            )
        dataset = dataset._replace(train=train, test=test)
        held = {"train": batches.hold(train, mesh), "test": batches.hold(test, mesh)}
    else:
        held = {}
    with _reading(dataset.name):
        statistics = splits.channel_statistics(dataset.train, reading("channel statistics"))
    preprocessing = Preprocessing(*statistics, trained_by.augment)
    model = configuration.build(len(dataset.class_names))
    schedule = ij.learning_rate_schedule(steps * number_of_epochs, trained_by.drop_after)
    optimizer = ij.make_optimizer(schedule)
    method = (ij.METHODS | ij.BASELINES)[configuration.method]
    programs = batches.make_programs(
        model, optimizer, preprocessing, mesh, batch_size, method.auxiliary_loss
    )
    return Session(
        dataset,
        held,
        mesh,
        batch_size,
        number_of_epochs,
        steps,
        preprocessing,
        model,
        optimizer,
        programs,
        make_initializer(model, optimizer, dataset.image_shape),
    )
