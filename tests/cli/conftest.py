"""A run small enough for seconds: 5 convolutions, 4 to 16 channels, 256 images, 2 epochs."""

import io
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import run
from interflow_jax.cli import single
from interflow_jax.cli.config import RunConfig
from interflow_jax.trainer import Trainer

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


def share(patch, trainers):
    """Lets runs that differ by their seed alone have one `Trainer`, with its programs."""
    configs, make_optimizer = [], RunConfig.make_optimizer

    def noted(config, steps):
        configs.append(config.replace(seed=0))
        return make_optimizer(config, steps)

    def trainer(model, dataset, **options):
        key = json.dumps([configs[-1].identity(), dataset.digest()], sort_keys=True)
        if key not in trainers:
            trainers[key] = Trainer(model, dataset, **options)
        return trainers[key]

    patch.setattr(RunConfig, "make_optimizer", noted)
    patch.setattr(single, "Trainer", trainer)


@pytest.fixture(scope="session")
def trainers():
    """Those that were made, by configuration and data."""
    return {}


@pytest.fixture
def quick(monkeypatch, trainers):
    """Spares a run what others prove: programs of its own, and pictures."""
    share(monkeypatch, trainers)
    dot = io.BytesIO()
    Image.new("L", (1, 1)).save(dot, "PNG")
    monkeypatch.setattr(Figure, "savefig", lambda chart, file, **_: file.write(dot.getvalue()))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, trainers):
    """The output folder of a finished small run."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        share(patch, trainers)
        assert run.main([*SMALL, f"--out={out}"]) == 0
    return out
