"""The runs of a sweep as command lines: what to start, and where its folder is."""

import hashlib
import re
import shlex
from pathlib import Path

from interflow_jax.cli.config import RunConfig, as_flag, fields

_NOT_OF_FILES = r"[^\w.=+-]"  # characters to avoid in a file's name
_LONGEST = 200  # characters of a file's name, which may have 255 bytes


def placed(config: RunConfig, runs: Path) -> RunConfig:
    """With a folder apart from other configurations': RUNS/VARIANT/DATASET/METHOD/seedN.

    VARIANT is what differs from the main command's defaults.
    """
    variant = "-".join(
        f"{name}{re.sub(_NOT_OF_FILES, '.', as_flag(value))}"
        for name, value in config.changes().items()
        if name not in {"dataset", "method", "seed"} | fields("places")
    )
    if len(variant) > _LONGEST:
        digest = hashlib.sha256(variant.encode()).hexdigest()[:8]
        variant = f"{variant[:_LONGEST]}-{digest}"
    return config.replace(out=str(runs / (variant or "paper")))


def command(config: RunConfig) -> str:
    """The command that does a run."""
    return shlex.join(["python", "-m", "interflow_jax", "run", *config.arguments()])


def in_words(config: RunConfig) -> str:
    """A run in a few words, as "S1 of depth 60 on cifar10, seed 0"."""
    depth = "" if config.model.depth == 13 else f" of depth {config.model.depth}"
    place = f"{config.model.method}{depth} on {config.data.dataset}"
    return f"{place}, seed {config.training.seed}"
