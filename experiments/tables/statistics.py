"""Comparing runs: intervals from paired seeds, outlying runs, and weights of a comparable sign."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from interflow_jax.backbones import Downsample, Layout, convolutions

CONFIDENCE = 0.95
_OUTLYING = 3.5


@dataclass(frozen=True)
class Spread:
    """A mean over runs, and their standard deviation, over n - 1; None for a single run."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def spread(runs: pd.Series) -> Spread | None:
    """Of a figure of several runs; None without a run."""
    values = runs.to_numpy(float)
    if len(values) == 0:
        return None
    return Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


@dataclass(frozen=True)
class Difference:
    """A mean of differences of paired seeds, and its 95 % confidence interval (Student's t)."""

    mean: float
    low: float | None  # None for fewer than two pairs
    high: float | None
    pairs: int  # seeds that both have
    runs: int  # of the first; in words, pairs are counted where they are fewer

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:+.2f} to {self.high:+.2f})"
        pairs = f", {self.pairs} pair{'s' if self.pairs > 1 else ''}"
        return f"{self.mean:+.2f}{interval}{pairs if self.pairs < self.runs else ''}"


def difference(ours: pd.Series, reference: pd.Series) -> Difference | None:
    """Compares two configurations' accuracies, by seed; None without a common seed."""
    values = (ours - reference).dropna().to_numpy(float)
    if len(values) == 0:
        return None
    low, high = interval(values) if len(values) > 1 else (None, None)
    return Difference(float(values.mean()), low, high, len(values), len(ours))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The ends of a mean's 95 % confidence interval; the value itself, of one alone."""
    mean, half = float(values.mean()), float(half_interval(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half


def half_interval(values: np.ndarray) -> np.ndarray:
    """Half the width of a mean's 95 % confidence interval (Student's t), [...].

    Args:
      values: [runs, ...], two runs at least.
    """
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return quantile * values.std(axis=0, ddof=1) / np.sqrt(len(values))


def outlying(values: np.ndarray) -> np.ndarray:
    """Marks runs that lie far from the others in some figure.

    A run is outlying if a figure of it is farther from that figure's median than 3.5 times the
    median distance, scaled to a normal distribution's deviation (Iglewicz and Hoaglin, 1993). Where
    more than half the runs are equal, the mean distance takes the median one's place.

    Args:
      values: [runs, figures].

    Returns:
      [runs], bool.
    """
    distances = np.abs(values - np.median(values, axis=0))
    scale = np.median(distances, axis=0) / stats.norm.ppf(0.75)
    scale = np.where(scale > 0, scale, distances.mean(axis=0) * np.sqrt(np.pi / 2))
    return np.any(distances > _OUTLYING * scale, axis=1)


def with_comparable_signs(weights: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """Turns signs that a model can trade without a change of what it computes.

    A branch's weight and its fully connected layer may both change sign (paper, IV-E); branches
    that share the layer do so together. Every group's deepest weight is made positive, in `class`
    fusion for every class by itself. The paper's tables are of weights as learned.

    Args:
      weights: [..., branches] or, of `class` fusion, [..., branches, classes], moved so that
        branches are the last axis.
      groups: the branches, counted from 0, that share a fully connected layer.
    """
    turned = np.array(weights, dtype=float)
    for group in groups:
        sign = np.where(turned[..., group[-1]] < 0, -1.0, 1.0)
        turned[..., group] *= sign[..., None]
    return turned


def sharing_groups(
    taps: tuple[int, ...],
    depth: int,
    width: float,
    downsample: Downsample,
    shared: bool,
    layout: Layout = "spread",
) -> list[list[int]]:
    """The branches, counted from 0, of every fully connected layer, shallow to deep."""
    if not shared:
        return [[branch] for branch in range(len(taps))]
    layers = convolutions(depth, width, downsample, layout)
    by_channels: dict[int, list[int]] = {}
    for branch, tap in enumerate(taps):
        by_channels.setdefault(layers[tap - 1][0], []).append(branch)
    return list(by_channels.values())
