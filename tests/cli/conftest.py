"""A run small enough for seconds: 5 convolutions, 4 to 16 channels, 256 images, 2 epochs."""

import json
from pathlib import Path

import pytest

from experiments import run

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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The output folder of a finished small run."""
    out = tmp_path_factory.mktemp("finished")
    assert run.main([*SMALL, f"--out={out}"]) == 0
    return out
