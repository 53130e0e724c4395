"""How tables judge: simultaneous intervals and verdicts; shares, weights' signs."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MARGIN = 0.5  # points, within which methods are no different; the paper's differ by under 1 (IV-D)
CHANCES = 3  # times chance accuracy: from there on, a run has begun to learn
_TRIES = 5
_MOST_RUNS = 10_000  # per row, that a verdict is said to need

RULE = f"""\
A difference is in points, of means over runs, which are not paired, of the last ten epochs. Its
95 % interval is simultaneous for all rows of its table: Dunnett's with one control, Tukey's for
other pairs, of the variance that all rows share; where Bartlett's test rejects that they share it
(p below 0.05), Games and Howell's. *Ahead* or *behind*: the interval excludes zero.
*No different*: it lies within {MARGIN} points of zero. Else *undecided*, with the runs per row at
which half its width would be {MARGIN} points, by the deviation that all rows share, or, where it is
no more than that already, at which the difference, if it stands, would be one of the others."""


@dataclass(frozen=True)
class Spread:
    """A mean over runs, and their standard deviation, with n - 1; None for a single run."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def spread(figures: Iterable[float]) -> Spread | None:
    """The spread of a figure over the runs that have it; None if none has."""
    values = _present(figures)
    deviation = float(values.std(ddof=1)) if values.size > 1 else None
    return Spread(float(values.mean()), deviation) if values.size else None


@dataclass(frozen=True)
class Share:
    """How many of some runs, with an exact 95 % interval of the share (Clopper and Pearson)."""

    count: int
    runs: int

    def ends(self) -> tuple[float, float]:
        """The interval's."""
        ends = stats.binomtest(self.count, self.runs).proportion_ci(CONFIDENCE, method="exact")
        return float(ends.low), float(ends.high)

    def __str__(self) -> str:
        low, high = self.ends()
        return f"{self.count} of {self.runs} ({100 * low:.0f} to {100 * high:.0f} %)"


def has_begun(runs: Any, accuracy: str = "test_accuracy") -> Any:
    """Marks the runs that have begun to learn: by the last epoch, `CHANCES` times chance.

    `accuracy` is the column that tells, such as that with recalibrated statistics.
    With few classes, it is at least halfway from chance to 100 %.
    """
    chance = 100 / runs["class_names"].str.len()
    return runs[accuracy] >= np.minimum(CHANCES * chance, (chance + 100) / 2)


@dataclass(frozen=True)
class Difference:
    """Points between two rows, the interval and the verdict that `RULE` gives.

    `low` and `high` have two decimals; they are None where nothing tells the deviation.
    """

    mean: float
    low: float | None
    high: float | None
    verdict: str
    needed: int | None  # runs per row, where it is undecided

    def __neg__(self) -> "Difference":
        """Of the same two rows, the second minus the first."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        verdict = {"ahead": "behind", "behind": "ahead"}.get(self.verdict, self.verdict)
        return Difference(-self.mean, low, high, verdict, self.needed)

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:+z.2f} to {self.high:+z.2f})"
        needed = f" ({self.needed:,} runs per row)" if self.needed else ""
        return f"{self.mean:+z.2f}{interval}, {self.verdict}{needed}"


class Family:
    """The rows of one table: by their names, the accuracies of their runs in percent.

    Attributes:
      rows: those that have runs.
      deviation: the standard deviation that they share; None if none has two runs.
      bartlett: p of Bartlett's test that they share it; None if fewer than two have two runs.
    """

    def __init__(self, rows: Mapping[Any, Iterable[float]]):
        present = {name: _present(figures) for name, figures in rows.items()}
        self.rows = {name: values for name, values in present.items() if values.size}
        repeated = [values for values in self.rows.values() if values.size > 1]
        self._freedom = sum(values.size - 1 for values in repeated)
        squares = sum(values.var() * values.size for values in repeated)
        self.deviation = math.sqrt(squares / self._freedom) if repeated else None
        self.bartlett = None
        if len(repeated) > 1 and self.deviation:
            with np.errstate(divide="ignore"):  # of a row of equal runs
                self.bartlett = float(stats.bartlett(*repeated).pvalue)
        self._is_equal = self.bartlett is None or self.bartlett >= 1 - CONFIDENCE

    def __str__(self) -> str:
        if self.deviation is None:
            return "No row has two runs." if self.rows else "Nothing is compared."
        test = "" if self.bartlett is None else f"; Bartlett's test p = {self.bartlett:.3f}"
        games = "" if self._is_equal else ": Games and Howell's intervals"
        return f"Standard deviation within rows {self.deviation:.2f}{test}{games}."

    def to(self, control: Any) -> dict[Any, Difference]:
        """Every other row minus the control; {} if that has no run."""
        others = [name for name in self.rows if name != control]
        if control not in self.rows or not (self.deviation and self._is_equal and others):
            return self.between([(name, control) for name in others])
        ends = _dunnett([self.rows[name] for name in others], self.rows[control])
        places = zip(others, ends.low, ends.high, strict=True)
        quantile = partial(_dunnett_quantile, len(others))
        return {
            name: self._judged(name, control, low, high, quantile) for name, low, high in places
        }

    def between(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Difference]:
        """By the first of each pair of rows that have runs, it minus the second."""
        differences = {}
        for pair in (pair for pair in pairs if {*pair} <= self.rows.keys()):
            low, high = self._tukey(*pair)
            quantile = partial(self._tukey_of_so_many, self._variances(*pair))
            differences[pair[0]] = self._judged(*pair, low, high, quantile)
        return differences

    def _variances(self, first: Any, second: Any) -> np.ndarray:
        """That of all rows, twice, or where they differ each one's own; NaN where nothing tells."""
        if self._is_equal:
            return np.full(2, math.nan if self.deviation is None else self.deviation**2)
        samples = self.rows[first], self.rows[second]
        return np.array([values.var(ddof=1) if values.size > 1 else math.nan for values in samples])

    def _tukey_of_so_many(self, variances: np.ndarray, runs: int) -> float:
        """Half an interval's width, in standard errors by the shared deviation, of so many runs."""
        rows = len(self.rows)
        freedom = rows if self._is_equal else variances.sum() ** 2 / (variances**2).sum()
        scale = math.sqrt(variances.mean()) / (self.deviation or math.nan)
        return scale * _tukey_quantile(rows, float(freedom * (runs - 1)))

    def _tukey(self, first: Any, second: Any) -> tuple[float, float]:
        """Tukey and Kramer's interval, or Games and Howell's; NaN where nothing gives one."""
        samples = self.rows[first], self.rows[second]
        counts, freedom = np.array([values.size for values in samples]), float(self._freedom)
        parts = self._variances(first, second) / counts
        if not self._is_equal and parts.sum() > 0:
            freedom = float(parts.sum() ** 2 / (parts**2 / (counts - 1)).sum())  # Welch's
        half = math.sqrt(parts.sum())
        if half > 0:
            half *= _tukey_quantile(len(self.rows), freedom)
        mean = float(samples[0].mean() - samples[1].mean())
        return mean - half, mean + half

    def _judged(
        self, first: Any, second: Any, low: float, high: float, quantile: Callable[[int], float]
    ) -> Difference:
        """The verdict on a difference, by its interval as it is printed."""
        mean = float(self.rows[first].mean() - self.rows[second].mean())
        if math.isnan(low):
            return Difference(mean, None, None, "undecided", self._needed(quantile, MARGIN))
        low, high = round(float(low), 2), round(float(high), 2)
        if low > 0 or high < 0:
            return Difference(mean, low, high, "ahead" if low > 0 else "behind", None)
        if low >= -MARGIN and high <= MARGIN:
            return Difference(mean, low, high, "no different", None)
        wide = (high - low) / 2 > MARGIN
        half = MARGIN if wide else max(abs(mean), MARGIN - abs(mean))
        return Difference(mean, low, high, "undecided", self._needed(quantile, half))

    def _needed(self, quantile: Callable[[int], float], half: float) -> int | None:
        """Runs of every row at which an interval would reach so far to either side."""
        if not self.deviation or len(self.rows) < 2:
            return None
        runs = 10
        for _ in range(3):  # the quantile hardly depends on it
            exact = 2 * (quantile(runs) * self.deviation / half) ** 2
            if math.isnan(exact):  # one of two rows whose deviations differ has a single run
                return None
            runs = min(max(2, math.ceil(exact)), _MOST_RUNS)
        return runs


def _dunnett(samples: list[np.ndarray], control: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows of a single run
        for seed in range(_TRIES):
            warnings.simplefilter("default" if seed == _TRIES - 1 else "error", UserWarning)
            test = stats.dunnett(*samples, control=control, rng=np.random.default_rng(seed))
            with contextlib.suppress(UserWarning):  # that its noisy search did not converge
                return test.confidence_interval(CONFIDENCE)


@lru_cache
def _dunnett_quantile(others: int, runs: int) -> float:
    """Half an interval's width in standard errors, with so many runs in every row."""
    values = np.resize([-1.0, 1.0], runs)
    values = (values - values.mean()) / values.std(ddof=1)
    return float(_dunnett([values] * others, values).high[0] / math.sqrt(2 / runs))


@lru_cache
def _tukey_quantile(rows: int, freedom: float) -> float:
    return float(stats.studentized_range.ppf(CONFIDENCE, rows, freedom) / math.sqrt(2))


def _present(figures: Iterable[float]) -> np.ndarray:
    values = np.asarray(list(figures), float)
    return values[np.isfinite(values)]


def interval(values: np.ndarray) -> tuple[float, float]:
    """The ends of a mean's 95 % confidence interval; for a single value, the value itself."""
    half = float(half_interval(values)) if len(values) > 1 else 0.0
    return float(values.mean()) - half, float(values.mean()) + half


def half_interval(values: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % confidence interval of means over runs: [runs, ...] to [...]."""
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return quantile * values.std(axis=0, ddof=1) / np.sqrt(len(values))


def deviation_interval(values: np.ndarray) -> tuple[float, float]:
    """The ends of the 95 % interval of a standard deviation, of normally distributed values."""
    freedom = len(values) - 1
    quantiles = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], freedom)
    low, high = np.sqrt(freedom * values.var(ddof=1) / quantiles)
    return float(low), float(high)


def with_comparable_signs(weights: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """Flips signs that a model can trade without changing what it computes.

    A branch's weight and its fully connected layer may both change sign (paper, IV-E); branches
    that share the layer do so together. Every group's deepest weight is made positive, in `class`
    fusion for every class separately. The paper's tables show weights as learned.

    Args:
      weights: [..., branches]; of `class` fusion, moved so that branches are the last axis.
      groups: the branches, counted from 0, that share a fully connected layer.
    """
    turned = np.array(weights, dtype=float)
    for group in groups:
        turned[..., group] *= np.where(turned[..., group[-1:]] < 0, -1.0, 1.0)
    return turned
