"""The runs of a sweep as command lines: what to start, and where its folder is."""

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from interflow_jax.cli.config import RunConfig, as_flag, fields
from interflow_jax.cli.folder import RunFolder

_NOT_OF_FILES = r"[^\w.=+-]"  # characters to avoid in a file's name
_LONGEST = 200  # characters of a file's name, which may have 255 bytes


@dataclass(frozen=True)
class Job:
    """One command line: runs of one configuration, which share a process and its programs."""

    config: RunConfig

    @property
    def runs(self) -> list[RunConfig]:
        return self.config.by_seed()

    def __str__(self) -> str:
        model, data = self.config.model, self.config.data
        depth = "" if model.depth == 13 else f" of depth {model.depth}"
        seeds = ", ".join(str(run.training.seed) for run in self.runs)
        return f"{model.method}{depth} on {data.dataset}, seed {seeds}"

    def left(self) -> list[RunConfig]:
        """Its runs that are not finished."""
        return [run for run in self.runs if not RunFolder(run.folder()).is_finished()]

    def folder(self) -> RunFolder:
        """Of the first run that is not finished, or else of the last one."""
        return RunFolder((self.left() or self.runs[-1:])[0].folder())

    def without_first(self) -> "Job | None":
        """What remains when its first unfinished run has failed."""
        return together(self.left()[1:])


def together(runs: list[RunConfig]) -> Job | None:
    """Runs that differ only by seed as one job; None without any."""
    if not runs:
        return None
    seeds = tuple(run.training.seed for run in runs)
    return Job(runs[0].replace(seed=0, seeds=seeds))


def jobs(runs: list[RunConfig], shared: bool) -> list[Job]:
    """The command lines for some runs; `shared` puts those that differ by seed into one."""
    groups: dict[object, list[RunConfig]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(run.replace(seed=0) if shared else number, []).append(run)
    return [job for group in groups.values() if (job := together(group))]


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
    return config.replace(out=str(runs / (variant or "paper")), seeds=None)


def command(config: RunConfig) -> str:
    """The command that does a run alone."""
    return shlex.join(["python", "-m", "interflow_jax", "run", *config.arguments()])
