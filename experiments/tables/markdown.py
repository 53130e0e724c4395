"""A table's report as Markdown, which `experiments.report` also renders as a page."""

from typing import Any

from experiments.page.markdown import MISSING, difference, number, spread, table
from experiments.tables import paper, weight_markdown
from experiments.tables.cells import DEEP


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
            [f"{record['method']} less {found['to']}", difference(found, len(record["runs"]))]
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
            text += weight_markdown.over_runs(report["table"], record)
    if report["table"] in DEEP:
        text += weight_markdown.of_depths(report["cells"])
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


def _row(record: dict[str, Any]) -> list[str]:
    there = len(record["runs"])
    best = number(record["best"]) if there else MISSING
    ours = spread(record) if there else MISSING
    seeds = f"{there} of {len(record['seeds'])}"
    apart = difference(record["difference"], there)
    printed = number(record["paper"])
    if record["paper"] is not None and record["dataset"] != record["paper_dataset"]:
        printed += f" ({record['paper_dataset']})"
    return [record["row"], printed, ours, best, seeds, apart]


def _readings(found: list[dict[str, Any]]) -> list[str]:
    """Table I: `first` less `last`."""
    rows = [
        [f"{each['section'].partition(',')[0]}, {each['row']}"]
        + [difference(each[key]) for key in ("accuracy", "step")]
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
    rows = [[f"{each['section']}, {each['row']}", difference(each)] for each in found]
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
                number(printed.get(str(run["seed"]), {}).get("accuracy")),
                number(run["test_accuracy"]),
            ]
            for run in record["runs"]
        ]
        if record["deviation"] is not None:
            of_paper = number(printed.get("variance", {}).get("accuracy"))
            rows.append(["variance", of_paper, number(record["deviation"] ** 2)])
        if rows:
            text += [f"## Every run of {record['row']} on {record['section']}", ""]
            text += table(["run", "paper", "ours"], rows)
    return text


def _alone(record: dict[str, Any]) -> list[list[str]]:
    """A row a branch, where the report has them."""
    return [
        [
            f"after {branch['after']}, {record['row']}",
            spread(branch),
            difference(branch["difference"]),
        ]
        for branch in record.get("branches_alone", ())
    ]
