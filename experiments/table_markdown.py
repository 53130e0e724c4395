"""A table's report as Markdown, which `experiments.report` also renders as a page."""

from typing import Any

import numpy as np

from experiments import comparison, paper

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
        "of its mean. A dash stands for a figure that the paper does not print, and for no",
        "difference.",
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
        ahead = [
            f"S1 less {record['row']}: {_interval(record['below_s1'])}"
            for record in records
            if record.get("below_s1")
        ]
        if ahead:
            text += [f"{'; '.join(ahead)}.", ""]
    for record in report["cells"]:
        if record.get("weights_over_runs"):
            text += _weights(report["table"], record)
    if report["table"] == "6":
        text += _weights_by_depth(report["cells"])
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
    apart = _interval(record["difference"])
    return [record["row"], _number(record["paper"]), ours, best, seeds, apart]


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


def _interval(found: dict[str, Any] | None) -> str:
    """A difference, and its interval if there is one."""
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" ({found['low']:+.2f} to {found['high']:+.2f})"
    return f"{found['mean']:+.2f}{interval}"


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
            "A run is outlying if its accuracy or a comparable weight is more than 3.5 scaled",
            f"median distances from the median: {outlying}.",
            "",
        ]
        rows = _printed_moments() if number == "4" and _is_the_paper_s(record) else []
        return text + table(["", "accuracy", *branches], rows + _moments(record))
    means = {
        kind.replace("_", " "): np.array(found[kind]).mean(axis=0)
        for kind in ("as_learned", "comparable")
    }
    if number == "5" and _is_the_paper_s(record):
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


def _is_the_paper_s(record: dict[str, Any]) -> bool:
    """Whether the paper prints weights of these very branches."""
    return record["paper"] is not None and record["runs"][0]["branches"] == [7, 9, 11, 13]


def _weights_by_depth(cells: list[dict[str, Any]]) -> list[str]:
    """The weights of every run of Table VI, beside the paper's."""
    records = [cell for cell in cells if cell["row"].startswith("Interflow") and cell["runs"]]
    if not records:
        return []
    most = max(len(record["runs"][0]["branches"]) for record in records)
    rows = []
    for record in records:
        depth = str(record["runs"][0]["depth"])
        printed = paper.table("6")["cells"].get(depth, {})
        weights = [printed.get(str(branch)) for branch in range(1, most + 1)]
        weighed = {"the paper's (cifar10)": weights} if printed else {}
        weighed |= {f"seed {run['seed']}": run["weights"] for run in record["runs"]}
        rows += [
            [
                f"{record['section']}, {whose}",
                *("" if value is None else f"{value:+z.2f}" for value in values),
                *[""] * (most - len(values)),
            ]
            for whose, values in weighed.items()
        ]
    head = ["branch, shallow to deep", *map(str, range(1, most + 1))]
    return ["## Weights of Interflow", "", "As learned.", "", *table(head, rows)]


def _printed_moments() -> list[list[str]]:
    """The paper's rows of Table IV."""
    rows = []
    for name in ("mean", "variance", "mean_without_13", "variance_without_13"):
        printed = paper.table("4")["cells"][name]
        shown = [printed.get(column) for column in ("accuracy", "1", "2", "3", "4")]
        figures = ["-" if value is None else f"{value:.4f}" for value in shown]
        rows.append([f"paper, {name.replace('_', ' ')}", *figures])
    return rows


def _moments(record: dict[str, Any]) -> list[list[str]]:
    """Our rows of Table IV: of all runs, and of those that are not outlying, if any is not."""
    repeated = record["weights_over_runs"]
    accuracy = np.array([run["test_accuracy"] for run in record["runs"]])
    inside = np.array([seed not in repeated["outlying"] for seed in repeated["seeds"]])
    rows = []
    for kind in ("as_learned", "comparable"):
        values = np.column_stack([accuracy, np.array(repeated[kind])])
        of = {"all": values, "without outlying": values[inside]}
        for which, some in of.items():
            if len(some) == 0:
                continue
            found = {"mean": some.mean(axis=0), "variance": some.var(axis=0)}
            if len(some) > 1:
                found["mean's 95 % interval, ±"] = comparison.half_interval(some)
            for name, figures in found.items():
                said = f"{kind.replace('_', ' ')}, {which}, {name}"
                rows.append([said, *(f"{value:.4f}" for value in figures)])
    return rows
