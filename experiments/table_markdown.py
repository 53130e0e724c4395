"""A table's report as Markdown, which `experiments.report` also renders as a page."""

from typing import Any

import numpy as np

from experiments import comparison, paper
from experiments.tables import DEEP

MISSING = "missing"
"""Stands where a run has not been made."""


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    text = [
        f"# {report['title']}",
        "",
        *("```", report["command"], "```"),
        "",
        f"Preset `{report['preset']}`: {report['protocol']}.",
        "",
        "Accuracy on the whole test split after the last epoch, percent; mean ± standard deviation",
        "over seeds. A difference is in points, of paired seeds, with the 95 % confidence interval",
        "of its mean; the pairs are counted where not every run has one. A dash stands for a",
        "figure that the paper does not print, or for nothing to compare with.",
        "",
    ]
    for section, records in by_section(report).items():
        text += [f"## {section}", ""]
        rows = {record["difference"]["to"] for record in records if record["difference"]}
        to = rows.pop() if len(rows) == 1 else "the row above" if rows else "Normal"
        text += table(
            ["", "paper", "ours", "best", "seeds", f"difference to {to}"],
            [_row(record) for record in records],
        )
        claims = [
            [f"{record['method']} less {found['to']}", _interval(found, len(record["runs"]))]
            for record in records
            for found in record["claims"]
        ]
        if claims:
            text += table(["", "difference of paired seeds"], claims)
    if report["table"] == "1":
        text += _readings(report["readings"])
    if report["table"] == "6":
        text += _by_depth(report["by_depth"])
    if report["table"] == "7":
        text += _runs(report["cells"])
    for record in report["cells"]:
        if record.get("weights_over_runs"):
            text += _weights(report["table"], record)
    if report["table"] in DEEP:
        text += _weights_of_depths(report["cells"])
    for section, records in by_section(report).items():
        rows = [row for record in records for row in _alone(record)]
        if rows:
            text += [f"## Branches alone: {section}", ""]
            text += table(["", "accuracy", "difference to the fusion of all"], rows)
    for picture in report["pictures"]:
        text += [f"![{picture['shows']}]({picture['file']})", ""]
    return "\n".join(text)


def by_section(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The report's cells by section, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in report["cells"]:
        found.setdefault(record["section"], []).append(record)
    return found


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table's lines: names on the left, figures to the right of their columns."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _row(record: dict[str, Any]) -> list[str]:
    there = len(record["runs"])
    best = _number(record["best"]) if there else MISSING
    ours = _spread(record) if there else MISSING
    seeds = f"{there} of {len(record['seeds'])}"
    apart = _interval(record["difference"], there)
    printed = _number(record["paper"])
    if record["paper"] is not None and record["dataset"] != record["paper_dataset"]:
        printed += f" ({record['paper_dataset']})"
    return [record["row"], printed, ours, best, seeds, apart]


def _readings(found: list[dict[str, Any]]) -> list[str]:
    """Table I: `first` less `last`."""
    rows = [
        [f"{each['section'].partition(',')[0]}, {each['row']}"]
        + [_interval(each[key]) for key in ("accuracy", "step")]
        for each in found
    ]
    if not rows:
        return []
    return [
        "## downsample=first less downsample=last",
        "",
        "Of accuracy, and of what each reading gains over the row above.",
        "",
        *table(["", "accuracy", "gain over the row above"], rows),
    ]


def _by_depth(found: list[dict[str, Any]]) -> list[str]:
    """Table VI: what depth costs."""
    rows = [[f"{each['section']}, {each['row']}", _interval(each)] for each in found]
    if not rows:
        return []
    head = ["", "less the shallowest of the method"]
    return ["## What depth costs", "", "Paired seeds.", "", *table(head, rows)]


def _runs(cells: list[dict[str, Any]]) -> list[str]:
    """Table VII: every run, and the variance."""
    text = []
    for record in cells:
        printed = paper.table("7")["cells"] if record["paper"] is not None else {}
        rows = [
            [
                str(run["seed"]),
                _number(printed.get(str(run["seed"]), {}).get("accuracy")),
                _number(run["test_accuracy"]),
            ]
            for run in record["runs"]
        ]
        if record["deviation"] is not None:
            of_paper = _number(printed.get("variance", {}).get("accuracy"))
            rows.append(["variance", of_paper, _number(record["deviation"] ** 2)])
        if rows:
            text += [f"## Every run of {record['row']} on {record['section']}", ""]
            text += table(["run", "paper", "ours"], rows)
    return text


def _alone(record: dict[str, Any]) -> list[list[str]]:
    """A row a branch, where the report has them."""
    return [
        [
            f"after {branch['after']}, {record['row']}",
            _spread(branch),
            _interval(branch["difference"]),
        ]
        for branch in record.get("branches_alone", ())
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _spread(found: dict[str, Any]) -> str:
    """A mean, and its standard deviation if there is one."""
    deviation = found["deviation"]
    return _number(found["mean"]) + ("" if deviation is None else f" ± {deviation:.2f}")


def _interval(found: dict[str, Any] | None, runs: int | None = None) -> str:
    """A difference, its interval if there is one, and its pairs if there are fewer than runs."""
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" ({found['low']:+.2f} to {found['high']:+.2f})"
    fewer = runs is not None and found["pairs"] < runs
    pairs = f", {found['pairs']} pair{'s' if found['pairs'] > 1 else ''}" if fewer else ""
    return f"{found['mean']:+.2f}{interval}{pairs}"


def _weights(number: str, record: dict[str, Any]) -> list[str]:
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


def _weights_of_depths(cells: list[dict[str, Any]]) -> list[str]:
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
                found["mean's 95 % interval, ±"] = comparison.half_interval(some)
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
    halves = comparison.half_interval(values)
    return [f"{mean} ± {half:.2f}" for mean, half in zip(means, halves, strict=True)]
