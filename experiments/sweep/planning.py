"""The runs of a sweep: what each is, and where its folder is."""

import dataclasses
import hashlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from experiments.cli.configuration import PLACES, Configuration, as_flag
from experiments.runs.folder import RunFolder


class Planned(NamedTuple):
    """One run of a sweep: a configuration of one seed, and its folder."""

    flags: Configuration
    folder: RunFolder

    def __str__(self) -> str:
        flags = self.flags
        depth = "" if flags.depth == 13 else f" of depth {flags.depth}"
        return f"{flags.method}{depth} on {flags.dataset}, seed {flags.seed}"

    @property
    def name(self) -> str:
        """The run's folder below the folder of runs: VARIANT/DATASET/METHOD/seedN."""
        return str(self.folder.path.relative_to(Path(self.flags.out).parent))

    def but_for_seed(self) -> str:
        """What runs that differ only by seed have in common."""
        return str(self.folder.path.parent)

    def command(self) -> str:
        """The command that does this run alone."""
        given = {"method": self.flags.method, "dataset": self.flags.dataset}
        given |= {"seed": self.flags.seed, **self.flags.changes()}
        flags = [f"--{name}={as_flag(value)}" for name, value in given.items()]
        return shlex.join(["python", "-m", "experiments.run", *flags])


_NOT_OF_FILES = r"[^\w.=+-]"  # characters to avoid in a file's name
_LONGEST = 200  # characters of a file's name, which may have 255 bytes

Failed = tuple[Planned, str]
"""A run that failed, and why, in one line."""


def plan(flags: Configuration, runs: Path) -> Planned:
    """Places a run apart from other configurations' runs: RUNS/VARIANT/DATASET/METHOD/seedN.

    VARIANT is what differs from the main command's defaults.
    """
    variant = "-".join(
        f"{name}{re.sub(_NOT_OF_FILES, '.', as_flag(value))}"
        for name, value in flags.changes().items()
        if name not in (*PLACES, "dataset", "method", "seed")
    )
    if len(variant) > _LONGEST:
        digest = hashlib.sha256(variant.encode()).hexdigest()[:8]
        variant = f"{variant[:_LONGEST]}-{digest}"
    out = runs / (variant or "paper")
    flags = dataclasses.replace(flags, out=str(out), seeds=None)
    return Planned(flags, RunFolder(flags.folder(flags.seed)))
