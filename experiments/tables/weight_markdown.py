"""What a table's report says of the fusion's weights, as Markdown."""

from typing import Any

import numpy as np

from experiments.page.markdown import table
from experiments.tables import paper, statistics


def over_runs(number: str, record: dict[str, Any]) -> list[str]:
    """What a cell's runs weigh: moments by branch, or means by branch and class (Tables IV, V)."""
    found = record["weights_over_runs"]
    branches = [f"after {tap}" for tap in record["runs"][0]["branches"]]
    text = [
        f"## Weights of {record['row']} on {record['section']}",
        "",
        "A branch's weight and its fully connected layer may trade their signs, branches that",
        "share the layer together; *comparable* weights have the deepest of each group positive.",
        "",
    ]
    if "outlying" in found:  # one weight a branch, not one a branch and class
        outlying = ", ".join(f"seed {seed}" for seed in found["outlying"]) or "none"
        text += [
            "A run is outlying if its accuracy or a comparable weight is more than 3.5 robust",
            "standard deviations (the median distance from the median, scaled) from the median:",
            f"{outlying}. Variances are over one less than the runs. *Grown* is by how much an",
            "absolute weight is above its own at the run's start.",
            "",
        ]
        rows = []
        if number == "4" and _has_printed_weights(record):
            text += _doubts()
            rows = _printed_moments()
        return text + table(["", "accuracy", *branches], rows + _moments(record))
    text += _grown_by_branch(found, branches)
    means = {
        kind.replace("_", " "): np.array(found[kind]).mean(axis=0)
        for kind in ("as_learned", "comparable")
    }
    if number == "5" and _has_printed_weights(record):
        printed = paper.table("5")["cells"].values()
        means = {
            "of the paper, as printed": np.array([[*row.values()] for row in printed]),
            **means,
        }
    for kind, mean in means.items():
        classes = [str(place) for place in range(1, mean.shape[1] + 1)]
        text += [f"Mean weights, {kind}, by branch and class:", ""]
        text += table(
            ["", *classes, "mean of absolutes"],
            [
                [branch, *(f"{value:+z.2f}" for value in row), f"{np.abs(row).mean():.2f}"]
                for branch, row in zip(branches, mean, strict=True)
            ],
        )
    return text


def _has_printed_weights(record: dict[str, Any]) -> bool:
    """Whether the paper prints weights of these very branches."""
    return record["paper"] is not None and record["runs"][0]["branches"] == [7, 9, 11, 13]


def of_depths(cells: list[dict[str, Any]]) -> list[str]:
    """The weights of every run of Interflow, at the start and as learned, beside the paper's."""
    text = []
    for record in cells:
        if not record.get("weights_at_start"):
            continue
        branches = [str(place) for place in range(1, len(record["runs"][0]["branches"]) + 1)]
        printed = paper.table("6")["cells"].get(str(record["depth"]), {})
        weighed = {}
        if printed.get("branches") == len(branches):
            weighed["paper (cifar10)"] = [printed[branch] for branch in branches]
        for run, start in zip(record["runs"], record["weights_at_start"], strict=True):
            weighed[f"seed {run['seed']}, at the start"] = start
            weighed[f"seed {run['seed']}, learned"] = run["weights"]
        text += [f"## Weights of Interflow, shallow to deep: {record['section']}", ""]
        text += table(
            ["branch", *branches],
            [[whose, *(f"{value:+z.2f}" for value in values)] for whose, values in weighed.items()],
        )
    return text


def _doubts() -> list[str]:
    """Why some of the paper's figures have a question mark."""
    reasons = dict.fromkeys(doubt["reason"] for doubt in paper.DOUBTFUL if doubt["table"] == "4")
    return [line for reason in reasons for line in (f"A question mark: {reason}.", "")]


def _printed_moments() -> list[list[str]]:
    """The paper's rows of Table IV; doubtful figures with a question mark."""
    doubtful = {
        (doubt["row"], doubt["column"]): doubt["reads"]
        for doubt in paper.DOUBTFUL
        if doubt["table"] == "4"
    }
    rows = []
    for name in ("mean", "variance", "mean_without_13", "variance_without_13"):
        printed = paper.table("4")["cells"][name]
        figures = [
            f"{printed[column]:.4f}" if column in printed else f"{doubtful[name, column]:.4f}?"
            for column in ("accuracy", "1", "2", "3", "4")
        ]
        rows.append([f"paper, {name.replace('_', ' ')}", *figures])
    return rows


def _moments(record: dict[str, Any]) -> list[list[str]]:
    """Our rows of Table IV: of all runs, and of those that are not outlying, if some are."""
    repeated = record["weights_over_runs"]
    accuracy = np.array([[run["test_accuracy"]] for run in record["runs"]])
    learned, start = np.array(repeated["as_learned"]), np.array(repeated["at_start"])
    kinds = {
        "at the start": start,
        "as learned": np.hstack([accuracy, learned]),
        "comparable": np.hstack([accuracy, np.array(repeated["comparable"])]),
        "absolute": np.abs(learned),
        "grown": np.abs(learned) - np.abs(start),
    }
    inside = np.array([seed not in repeated["outlying"] for seed in repeated["seeds"]])
    rows = []
    for kind, values in kinds.items():
        of = {kind: values}
        if 0 < inside.sum() < len(inside):
            of = {f"{kind}, all": values, f"{kind}, without outlying": values[inside]}
        for which, some in of.items():
            found = {"mean": some.mean(axis=0)}
            if len(some) > 1:
                found["variance"] = some.var(axis=0, ddof=1)
                found["mean's 95 % interval, ±"] = statistics.half_interval(some)
            for name, figures in found.items():
                shown = [f"{value:.4f}" for value in figures]
                rows.append(
                    [f"{which}, {name}", *["-"] * (1 + learned.shape[1] - len(shown)), *shown]
                )
    return rows


def _grown_by_branch(found: dict[str, Any], branches: list[str]) -> list[str]:
    """Of weights by class: how large they are without regard to sign, at the start and after."""
    # [runs, branches]
    start, learned = (np.abs(found[kind]).mean(axis=2) for kind in ("at_start", "as_learned"))
    columns = [_mean_interval(values) for values in (start, learned, learned - start)]
    text = ["Mean absolute weight over a run's classes, mean over runs and its 95 % interval:", ""]
    rows = [list(row) for row in zip(branches, *columns, strict=True)]
    return text + table(["", "at the start", "as learned", "grown"], rows)


def _mean_interval(values: np.ndarray) -> list[str]:
    """A column's means over runs with their intervals, as "0.61 ± 0.05"."""
    means = [f"{mean:z.2f}" for mean in values.mean(axis=0)]
    if len(values) < 2:
        return means
    halves = statistics.half_interval(values)
    return [f"{mean} ± {half:.2f}" for mean, half in zip(means, halves, strict=True)]
