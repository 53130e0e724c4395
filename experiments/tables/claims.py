"""What the paper claims, and what the runs answer: the rows of claims.json.

Every figure is of a section of some table, made anew from the runs, or of the paper's own tables.
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.sweep.record import EXITS
from experiments.tables import fusion_weights, paper, plan, statistics
from experiments.tables.exits import rank_correlation, sizes
from experiments.tables.report import Picture, Section
from experiments.tables.runs import Frame, finished
from experiments.tables.statistics import Difference, Family, Share
from interflow_jax.cli.training import late_epochs

Planned = Callable[[str], tuple[ModuleType, Frame]]
"""A table and its runs, by the flags of `experiments.reproduce`."""

_FILE = json.loads(Path(__file__).with_suffix(".json").read_text())
FLAGS: dict[str, str] = _FILE["tables"]  # of experiments.reproduce, by the names here
CLAIMS: list[dict[str, Any]] = _FILE["claims"]
RATE = 3e-2  # of the claims where nothing else is said
NOT_TRAINED = "not trained yet"


class Tables:
    """The tables of claims.json on the runs of one record, each made once."""

    def __init__(self, planned: Planned):
        self._planned = lru_cache(lambda name: planned(FLAGS[name]))
        self._sections = lru_cache(self._uncached_sections)

    def runs(self, name: str) -> Frame:
        """Its finished runs."""
        return finished(self._planned(name)[1])

    def progress(self, name: str) -> str:
        """How many of its runs are finished, of those whose rate is known."""
        table, planned = self._planned(name)
        chosen = " at chosen rates" if hasattr(table, "CHOOSE") else ""
        measured = ""
        if column := getattr(table, "MEASURED", None):
            measured = f", {column} measured of {self.runs(name)[column].count()}"
        return f"{len(self.runs(name))} of {len(planned)}{chosen}{measured}"

    def page(self, name: str) -> str:
        """The name of its page."""
        return f"{plan.stem(self._planned(name)[0])}.md"

    def _uncached_sections(self, name: str) -> list[Section]:
        """Those before its first picture."""
        table, runs = self._planned(name)
        sections = []
        for part in table.report(runs) if len(self.runs(name)) else ():
            if isinstance(part, Picture):
                plt.close(part.figure)
                break
            sections.append(part)
        return sections

    def rows(self, name: str, key: str) -> list[dict[str, Any]]:
        """The rows of all its sections of a kind."""
        return [row for each in self._sections(name) if each.key == key for row in each.rows]

    def difference(self, name: str) -> Difference | None:
        """One of claims.json, of the first row with its fields; None where runs are missing."""
        asked = _FILE["differences"][name]
        if "minus" in asked:
            found = self.difference(asked["minus"])
            return found and -found
        if "between" in asked:
            (first, second), runs = asked["between"], self.runs(asked["table"])
            for field, value in asked.get("of", {}).items():
                runs = runs[runs[field] == value]
            accuracies = runs.groupby(asked.get("by", "method"))["late_accuracy"]
            return Family(dict(iter(accuracies))).between([(first, second)]).get(first)
        rows, fields = self.rows(asked["table"], asked.get("section", "cells")), asked["row"]
        alike = (row for row in rows if all(row.get(name) == fields[name] for name in fields))
        return next((row["difference"] for row in alike), None)


class Answer(NamedTuple):
    """What runs say of a claim: a verdict, one figure, and that of the control beside it."""

    verdict: str
    figure: str
    control: str = ""


def ends(found: Difference) -> str:
    """An interval, in words."""
    if found.low is None:
        return " (too few runs for an interval)"
    return f" ({found.low:+z.2f} to {found.high:+z.2f})"


def figure(found: Difference | None) -> str:
    """A difference and its interval, in words."""
    return NOT_TRAINED if found is None else f"{found.mean:+z.2f}{ends(found)}"


def _judged(
    words: str,
    found: Difference | None,
    control: str,
    beside: Difference | None,
    holds: Sequence[str] = ("ahead",),
    role: str = "rival",
    where: str = "by the control",
) -> Answer | None:
    """Answers a claim that some verdicts on a difference confirm.

    A control that is a rival explains it as well where it is ahead, too; one whose role is "also"
    must be ahead as well for the claim to hold; where it is behind, `where` says at what.
    """
    if found is None or found.low is None:
        return None
    verdict = {"undecided": "undecided", "no different": "no difference"}.get(found.verdict)
    if found.verdict in holds:
        verdict, other = "confirmed", beside and beside.verdict
        if role == "rival" and other == found.verdict == "ahead":
            verdict += ", and the control does as much"
        if role == "also" and other != "ahead":
            verdict = f"undecided, as the control is {other or NOT_TRAINED}"
            if other == "behind":
                verdict = f"confirmed, and contradicted {where}"
    needed = f" (it takes {found.needed:,} runs per row)" if found.needed else ""
    verdict = f"{verdict or 'contradicted'}{needed}"
    return Answer(verdict, f"{words}: {figure(found)}", control and f"{control}: {figure(beside)}")


def table_of(claim: dict[str, Any]) -> str:
    """The table, by its name in claims.json, that answers a claim."""
    name = claim.get("difference", "")
    while "minus" in (asked := _FILE["differences"].get(name, claim)):
        name = asked["minus"]
    return asked["table"]


def answer(claim: dict[str, Any], tables: Tables) -> Answer | None:
    """What the runs say of one of claims.json; None where they are missing."""
    if "answer" in claim:
        runs = tables.runs(claim["table"])
        return None if runs.empty else _ANSWERS[claim["answer"]](tables, runs)
    names = claim["difference"], claim.get("control")
    (words, found), (control, beside) = (
        (_FILE["differences"][name]["words"], tables.difference(name)) if name else ("", None)
        for name in names
    )
    options = {name: claim[name] for name in ("holds", "role", "where") if name in claim}
    return _judged(words, found, control, beside, **options)


def _by(low: float, high: float, least: float) -> str:
    return "confirmed" if low > least else "contradicted" if high < least else "undecided"


def _most(found: np.ndarray, words: str, control: str = "") -> Answer:
    """Answers a claim on every run, which is confirmed where it holds in most."""
    share = _share(found)
    return Answer(_by(*share.ends(), 0.5), f"{words}: {share}", control)


def _share(found: np.ndarray) -> Share:
    return Share(int(np.sum(found)), len(found))


def _overfits(tables: Tables, runs: Frame) -> Answer | None:
    plain = (runs["auxiliary_mean"] == 0) & runs["fusion"].isna() & (runs["depth"] == 13)
    runs = runs[plain & (runs["learning_rate"] == RATE)]
    history = runs["history"].map(late_epochs)
    seen = history.map(lambda epochs: np.mean([epoch["train_accuracy"] for epoch in epochs]))
    gaps = (seen - runs["late_accuracy"]).groupby(runs["method"])
    found = Family(dict(iter(gaps))).to("Normal")
    words = "accuracy while it trains, on crops, minus that on test images, S1's minus Normal's"
    beside = ", ".join(f"{name}'s: {figure(found.get(name))}" for name in ("Concat", "DSN"))
    judged = _judged(words, found.get("S1"), "", None, ("behind",))
    return judged and judged._replace(control=beside)


def _with_exits(runs: Frame) -> Frame:
    """The runs of S1 in which leaving out each branch was measured."""
    runs = runs.dropna(subset=[EXITS])
    plain = (runs["method"] == "S1") & (runs["auxiliary_mean"] == 0) & runs["fusion"].isna()
    return runs[plain & (runs["branches"].str.len() == 4)]


def _stages(tables: Tables, runs: Frame) -> Answer | None:
    runs = _with_exits(runs)
    if len(runs) < 2:
        return None
    costs = np.array([run["fusions"]["own"]["left_out"] for run in runs[EXITS]])
    least = costs.mean(axis=0).argmin()
    low, high = statistics.interval(costs[:, least])
    words = f"what leaving out the branch after {runs['branches'].iloc[0][least]} costs, over "
    words += f"{len(runs)} runs: {costs[:, least].mean():.2f} ({low:.2f} to {high:.2f})"
    others = ", ".join(f"{cost:.2f}" for cost in np.delete(costs.mean(axis=0), least))
    return Answer(_by(low, high, statistics.MARGIN), words, f"the other branches: {others}")


def _redundancy(tables: Tables, runs: Frame) -> Answer | None:
    runs = _with_exits(runs)
    if len(runs) < 2:
        return None
    ranks = runs.apply(rank_correlation, axis=1).to_numpy()
    low, high = np.clip(statistics.interval(ranks), -1, 1)
    words = "rank correlation of a weight's size and what leaving its term out costs, over "
    words += f"{len(ranks)} runs: {ranks.mean():.2f} ({low:.2f} to {high:.2f})"
    verdict, fewer = _by(low, high, 0), tables.difference("nine")
    shares = np.array([sizes(weights)[2:].sum() for weights in runs["weights"]])  # after 11 and 13
    superfluous = fewer is not None and fewer.verdict in ("ahead", "no different")
    # "Tiny or even zero weights" for redundant layers (III-C): not half of what is equal shares.
    if superfluous and statistics.interval(shares)[0] > 0.5 / 2:
        verdict = f"contradicted by the control (else {verdict})"
    control = "of all weights' size, that of layers 10 to 13, without which nine layers are "
    control += f"{fewer.verdict if fewer else NOT_TRAINED}: {shares.mean():.0%}"
    return Answer(verdict, words, control)


def _converge(tables: Tables, runs: Frame) -> Answer | None:
    if len(runs) < 2:
        return None
    config, shape = runs["config"].iloc[0], tuple(runs["image_shape"].iloc[0])
    groups = fusion_weights.sharing_groups(config.model.build(2), shape)
    weights = statistics.with_comparable_signs(np.array(runs["weights"].tolist()), groups)
    variances = paper.CELLS["4"]["variance_without_13"]
    theirs = {int(name): value**0.5 for name, value in variances.items() if name != "accuracy"}
    ends = {branch: statistics.deviation_interval(weights[:, branch - 1]) for branch in theirs}
    if all(ends[branch][0] > theirs[branch] for branch in theirs):
        verdict = "contradicted here"
    else:
        confirmed = all(ends[branch][1] <= theirs[branch] for branch in theirs)
        verdict = "confirmed" if confirmed else "undecided"
    ours = {branch: weights[:, branch - 1].std(ddof=1) for branch in theirs}
    told, printed = (
        ", ".join(f"{value:.2f}" for value in figures.values()) for figures in (ours, theirs)
    )
    numbers = ", ".join(map(str, theirs))
    words = f"standard deviations over {len(runs)} runs of S1, of the weights of branches {numbers}"
    control = f"the paper's, without the run that it leaves out: {printed}"
    return Answer(verdict, f"{words}, their signs made comparable: {told}", control)


def _largest(runs: Frame) -> np.ndarray:
    """The branch with the largest weight, of classes on average, from the end: [runs]."""
    sizes = np.abs(np.array(runs["weights"].tolist()))
    sizes = sizes.reshape(*sizes.shape[:2], -1).mean(axis=2)
    return sizes.argmax(axis=1) - sizes.shape[1]


def _deepest(tables: Tables, runs: Frame) -> Answer:
    method, control = runs["method"].iloc[0], ""
    slow = tables.runs("repeated at 1e-3")
    if method == "S1" and len(slow):
        control = f"at the paper's rate, 1e-3: {_share(_largest(slow) == -1)}"
    return _most(_largest(runs) == -1, f"runs of {method}", control)


def _first(tables: Tables, runs: Frame) -> Answer | None:
    runs = runs[(runs["method"] == "S1") & (runs["warmup_epochs"] == 0)]
    if runs.empty:
        return None
    by_depth = {str(depth): of for depth, of in runs.groupby("depth")}
    first = [_largest(of) == -len(of["branches"].iloc[0]) for of in by_depth.values()]
    return _most(np.concatenate(first), f"runs of S1 at depth {', '.join(by_depth)}")


def _repeats(tables: Tables, runs: Frame) -> Answer | None:
    accuracies = runs["test_accuracy"].to_numpy()
    if len(accuracies) < 2:
        return None
    theirs = paper.CELLS["7"]
    printed = np.array([theirs[str(run)]["accuracy"] for run in range(10)])
    (low, high), (least, most) = map(statistics.deviation_interval, (accuracies, printed))
    verdict = "contradicted here" if low > most else "confirmed" if high <= most else "undecided"
    told = f"standard deviation of S3, of accuracies of {accuracies.mean():.0f} %: "
    told += f"{accuracies.std(ddof=1):.2f} ({low:.2f} to {high:.2f})"
    control = f"the paper's, of {printed.mean():.0f} %: {printed.std(ddof=1):.2f} "
    return Answer(verdict, told, f"{control}({least:.2f} to {most:.2f})")


def _every_method(tables: Tables, runs: Frame) -> Answer | None:
    accuracies = dict(iter(runs.groupby("method")["late_accuracy"]))
    names = [f"S{number}" for number in range(10)]
    found = {name: each for name, each in Family(accuracies).to("Normal").items() if name in names}
    if len(found) < len(names):
        return None
    verdicts = [each.verdict for each in found.values()]
    least = min(found, key=lambda name: found[name].mean)
    counts = f"ahead: {verdicts.count('ahead')} of 10, behind: {verdicts.count('behind')}"
    verdict = "confirmed" if verdicts.count("ahead") == len(names) else counts
    return Answer(verdict, f"the least, {least} minus Normal: {figure(found[least])}")


def budgets(tables: Tables) -> dict[str, Difference]:
    """Early exits minus the best networks without, by way and share of operations."""
    return {
        f"{cells['row']}, {name}": cell
        for cells in tables.rows("exits", "to_networks")
        for name, cell in cells.items()
        if isinstance(cell, Difference)
    }


def _early(tables: Tables, runs: Frame) -> Answer | None:
    if not (found := budgets(tables)):
        return None
    verdicts = [each.verdict for each in found.values()]
    best = max(found, key=lambda name: found[name].mean)
    counts = ", ".join(f"{name}: {verdicts.count(name)}" for name in ("ahead", "behind"))
    told = f"the best of all ways and budgets, {best}: {figure(found[best])}"
    return Answer(f"{counts}, of {len(found)}", told)


_ANSWERS: dict[str, Callable[[Tables, Frame], Answer | None]] = {
    "overfits": _overfits,
    "stages": _stages,
    "redundancy": _redundancy,
    "converge": _converge,
    "deepest": _deepest,
    "first": _first,
    "repeats": _repeats,
    "every_method": _every_method,
    "early": _early,
}


def of_paper() -> dict[str, str]:
    """What the paper's own tables say, by the names that claims.json has for it."""
    cells = paper.CELLS["3"]

    def ahead(*pairs: str, places: tuple[str, ...] = tuple(cells["Normal"])) -> str:
        named = [(first, second) for first, second in map(str.split, pairs)]
        cases = [cells[a][place] > cells[b][place] for place in places for a, b in named]
        return f"{sum(cases)} of {len(cases)}"

    deep = paper.CELLS["6"].values()
    sizes = [[abs(row[str(number + 1)]) for number in range(row["branches"])] for row in deep]
    accuracy = {depth: row["accuracy"] for depth, row in paper.CELLS["1"].items()}
    soft = [f"S{number} S0" for number in range(1, 5)]
    return {
        "over_normal": ahead(*(f"S{number} Normal" for number in range(10))),
        "soft": ahead(*soft, *(f"S{number} S5" for number in range(6, 10))),
        "soft_cifar100": ahead(*soft, places=("cifar100",)),
        "given": ahead("S2 S1", "S4 S3", "S7 S6", "S9 S8"),
        "more": ahead("S6 S1", "S7 S2", "S8 S3", "S9 S4"),
        "per_class": ahead("S3 S1", "S4 S2", "S8 S6", "S9 S7"),
        "per_class_easy": ahead("S4 S2", places=("svhn", "mnist", "fashion_mnist")),
        "first": f"{sum(each[0] == max(each) for each in sizes)} of {len(sizes)}",
        "thirteen_over_nine": f"{accuracy['13'] - accuracy['9']:.2f}",
    }
