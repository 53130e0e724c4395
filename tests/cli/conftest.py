"""A run small enough for seconds: 5 convolutions, 4 to 16 channels, 256 images, 2 epochs."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest

from experiments import run
from interflow_jax import optimizer, steps, trainer
from interflow_jax.cli.config import RunConfig

SMALL = [
    "--method=S3",
    "--depth=5",
    "--taps=3,4,5",
    "--width=0.0625",
    "--train_size=256",
    "--epochs=2",
]


def folder_in(out: Path, method: str = "S3", seed: int = 0) -> Path:
    """Where a run of the sample goes."""
    return out / "fashion_mini" / method / f"seed{seed}"


def result_in(out: Path, method: str = "S3", seed: int = 0) -> dict:
    return json.loads((folder_in(out, method, seed) / "result.json").read_text())


@pytest.fixture(scope="session", autouse=True)
def programs():
    """Runs that differ in no more than their seed share what is compiled, as --seeds lets them.

    A run of its own traces, lowers and loads its programs for longer than it trains.
    """
    made, kept = {}, set()
    make_optimizer, initializer, compiled = (
        RunConfig.make_optimizer,
        steps.make_initializer,
        trainer.compiled,
    )

    def once(key, make):
        if key not in made:
            made[key] = make()
        return made[key]

    def of_config(self, count):
        schedule = optimizer.optax.piecewise_constant_schedule  # which a test may replace
        training = dataclasses.replace(self.training, seed=0)
        key = training, self.model.frozen, self.data.dataset, count, schedule
        result = once(key, lambda: make_optimizer(self, count))
        kept.add(result)
        return result

    def of_initializer(model, optimizer, shape):
        make = functools.partial(initializer, model, optimizer, shape)
        return once((model, optimizer, shape), make) if optimizer in kept else make()

    def of_trainer(model, step, evaluation, *others):
        make = functools.partial(compiled, model, step, evaluation, *others)
        if step.args[1] not in kept:
            return make()
        options = (tuple(part.keywords.items()) for part in (step, evaluation))
        return once((model, step.args[1], *options, *others), make)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "make_optimizer", of_config)
        patch.setattr(steps, "make_initializer", of_initializer)
        patch.setattr(trainer, "compiled", of_trainer)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The output folder of a finished small run."""
    out = tmp_path_factory.mktemp("finished")
    assert run.main([*SMALL, f"--out={out}"]) == 0
    return out
