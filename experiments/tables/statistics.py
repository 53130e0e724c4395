"""Comparing runs: intervals, verdicts, counts, outlying runs, and weights with comparable signs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
MARGIN = 0.3  # points, within which methods are equal; the paper's differ by less than 1 (IV-D)
CHANCES = 3  # times chance accuracy: from there on, a run has begun to learn
_OUTLYING = 3.5


@dataclass(frozen=True)
class Spread:
    """A mean over runs, and their standard deviation, with n - 1; None for a single run."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def spread(runs: pd.Series) -> Spread | None:
    """The spread of a figure over several runs; None without a run."""
    values = runs.to_numpy(float)
    if len(values) == 0:
        return None
    return Spread(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


@dataclass(frozen=True)
class Share:
    """How many of some runs, with an exact 95 % interval of the share (Clopper and Pearson)."""

    count: int
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        rest, tail = self.runs - self.count, (1 - CONFIDENCE) / 2
        low = stats.beta.ppf(tail, self.count, rest + 1) if self.count else 0.0
        high = stats.beta.ppf(1 - tail, self.count + 1, rest) if rest else 1.0
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count} of {self.runs} ({100 * low:.0f} to {100 * high:.0f} %)"


def learned(runs: pd.DataFrame) -> pd.Series:
    """Marks runs that have begun to learn: their test accuracy is at least `CHANCES` times chance.

    With few classes, it is at least halfway from chance to 100 %.
    """
    chance = 100 / runs["class_names"].str.len()
    return runs["test_accuracy"] >= np.minimum(CHANCES * chance, (chance + 100) / 2)


@dataclass(frozen=True)
class Interval:
    """A mean in points, and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass
class Difference:
    """A mean of differences of paired seeds, and its 95 % confidence interval (Student's t)."""

    mean: float
    low: float | None  # None for fewer than two pairs
    high: float | None
    pairs: int  # seeds that both have
    runs: int  # of the first; in words, the number of pairs is given where it is smaller
    welch: Interval | None = None  # of all runs, paired or not; None for fewer than two of either
    p: float | None = None  # of the pairs, without correction
    holm: float | None = None  # the same, corrected by `judge`
    verdict: str | None = None  # by `judge`: ahead, behind, equal or undecided

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:+.2f} to {self.high:+.2f})"
        pairs = f", {self.pairs} pair{'s' if self.pairs > 1 else ''}"
        verdict = f", {self.verdict}" if self.verdict else ""
        return f"{self.mean:+.2f}{interval}{pairs if self.pairs < self.runs else ''}{verdict}"


def difference(ours: pd.Series, reference: pd.Series) -> Difference | None:
    """Compares two configurations' accuracies, by seed; None without a common seed."""
    ours, reference = ours.dropna(), reference.dropna()
    values = (ours - reference).dropna().to_numpy(float)
    if len(values) == 0:
        return None
    low, high = interval(values) if len(values) > 1 else (None, None)
    whole = welch(ours.to_numpy(float), reference.to_numpy(float))
    mean, runs = float(values.mean()), len(ours)
    return Difference(mean, low, high, len(values), runs, whole, _p(values))


def _p(values: np.ndarray) -> float | None:
    """How likely a mean at least as far from zero would be, were the true one zero (t test)."""
    if len(values) < 2:
        return None
    error = values.std(ddof=1) / np.sqrt(len(values))
    if error == 0:  # runs of equal accuracies
        return float(values.mean() == 0)
    return float(2 * stats.t.sf(abs(values.mean()) / error, len(values) - 1))


def welch(ours: np.ndarray, reference: np.ndarray) -> Interval | None:
    """The difference of two means of unpaired runs (Welch, 1947); None for fewer than two."""
    if min(len(ours), len(reference)) < 2:
        return None
    # The variances of the two means, and the degrees of freedom of their sum.
    parts = np.array([values.var(ddof=1) / len(values) for values in (ours, reference)])
    mean, half = float(ours.mean() - reference.mean()), 0.0
    if parts.any():
        freedom = parts.sum() ** 2 / (parts**2 / [len(ours) - 1, len(reference) - 1]).sum()
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(parts.sum()))
    return Interval(mean, mean - half, mean + half)


def judge(differences: Sequence[Difference]) -> None:
    """Gives the differences of one table their corrected p and their verdicts.

    Equal: the paired interval lies within `MARGIN` of zero. Ahead or behind: p, corrected by Holm's
    method for the number of differences, is below 0.05. Else undecided.
    """
    tested = [(each.p, each) for each in differences if each.p is not None]
    corrected = 0.0
    for place, (p, each) in enumerate(sorted(tested, key=lambda pair: pair[0])):
        corrected = max(corrected, min(1.0, p * (len(tested) - place)))
        each.holm = corrected
    for each in differences:
        each.verdict = _verdict(each)


def _verdict(of: Difference) -> str:
    if of.low is None or of.high is None or of.holm is None:
        return "undecided"
    if of.low > -MARGIN and of.high < MARGIN:
        return "equal"
    if of.holm < 1 - CONFIDENCE:
        return "ahead" if of.mean > 0 else "behind"
    return "undecided"


def interval(values: np.ndarray) -> tuple[float, float]:
    """The ends of a mean's 95 % confidence interval; for a single value, the value itself."""
    mean, half = float(values.mean()), float(half_interval(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half


def half_interval(values: np.ndarray) -> np.ndarray:
    """Half the width of a mean's 95 % confidence interval (Student's t), [...].

    Args:
      values: [runs, ...], at least two runs.
    """
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return quantile * values.std(axis=0, ddof=1) / np.sqrt(len(values))


def outlying(values: np.ndarray) -> np.ndarray:
    """Marks runs that lie far from the others in some figure.

    A run is outlying if one of its figures is farther from that figure's median than 3.5 times the
    median distance, scaled to a normal distribution's deviation (Iglewicz and Hoaglin, 1993). Where
    more than half of the runs are equal, the mean distance takes the place of the median one.

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
    """Flips signs that a model can trade without changing what it computes.

    A branch's weight and its fully connected layer may both change sign (paper, IV-E); branches
    that share the layer do so together. Every group's deepest weight is made positive, in `class`
    fusion for every class separately. The paper's tables show weights as learned.

    Args:
      weights: [..., branches] or, for `class` fusion, [..., branches, classes], moved so that
        branches are the last axis.
      groups: the branches, counted from 0, that share a fully connected layer.
    """
    turned = np.array(weights, dtype=float)
    for group in groups:
        sign = np.where(turned[..., group[-1]] < 0, -1.0, 1.0)
        turned[..., group] *= sign[..., None]
    return turned
