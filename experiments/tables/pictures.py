"""What the pictures of the tables share."""

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.tables.compare import in_words
from experiments.tables.report import Picture, Section
from experiments.tables.runs import Frame, finished
from interflow_jax.cli.config import RunConfig
from interflow_jax.config import VGG

LABELS = {
    "depth": "convolutions",
    "after": "branch after convolution",
    "learning_rate": "learning rate",
    "late_accuracy": "test accuracy (%),\nmean of the last ten epochs",
    **dict.fromkeys(("test_accuracy", "alone"), "test accuracy (%)"),
}
BARS = "bars are standard deviations over seeds, hollow points single runs"
_PAPER: dict[str, Any] = {"marker": "D", "mfc": "none", "ls": "--"}


def stem(*parts: Any) -> str:
    """A file's name, without extension, of characters that need no escaping in a Markdown link."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, parts))).strip("-")


def entitle(figure: Figure, what: str, runs: Frame) -> None:
    """Puts above a figure what it shows, what its runs have in common, and their seeds."""
    runs, names = finished(runs), ("dataset", "method", "depth", "learning_rate")
    names = names if set(runs["backbone"]) == {VGG} else ("dataset", "method", "learning_rate")
    common = [name for name in names if runs[name].nunique() == 1]
    seeds = sorted(set(runs["seed"]))
    shown = ", ".join(map(str, seeds)) if len(seeds) < 7 else _stretches(seeds)
    words = [in_words(runs.iloc[0].to_dict(), common), f"seed{'s' * (len(seeds) > 1)} {shown}"]
    figure.suptitle(f"{what}\n{', '.join(filter(None, words))}", fontsize=10)
    if not figure.get_constrained_layout():  # of seaborn, which leaves no room for it
        figure.subplots_adjust(top=figure.subplotpars.top - 0.45 / figure.get_figheight())


def _stretches(numbers: Sequence[int]) -> str:
    """Ascending whole numbers as "0 to 10, 100 to 102"."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in pairs)


def whole_numbers(axes: Axes) -> None:
    """Puts ticks of x at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def lines(runs: Frame, x: str, y: str, line: str = "row", **options: Any) -> sns.FacetGrid:
    """Lines that differ by colour and marker, a panel per `col`, by default the section."""
    options = {
        "hue": line,
        "style": line,
        "col": "section",
        "palette": "tab10",
        "markers": True,
        "dashes": False,
        "facet_kws": {"sharex": False, "sharey": False},
    } | options
    panels = runs[options["col"]].nunique()
    rows = -(-panels // 3)  # more than three side by side would be unreadable
    size = {"height": 3.4, "aspect": 1.2 if panels > 1 else 1.6, "col_wrap": -(-panels // rows)}
    grid = sns.relplot(runs, kind="line", x=x, y=y, **size, **options)
    for axes in grid.axes.flat:
        whole_numbers(axes)
    if grid.legend is not None:
        grid.legend.set_title("")
    grid.set_titles("{col_name}").set_axis_labels(LABELS.get(x, x), LABELS.get(y, y))
    return grid.tight_layout()


def colors(names: Any) -> dict[str, Any]:
    """The colours that `lines` gives to names."""
    return dict(zip(names.unique(), sns.color_palette("tab10"), strict=False))


def over_seeds(runs: Frame, x: str, y: str = "late_accuracy") -> sns.FacetGrid:
    """Means and standard deviations over seeds by row, with the points of single runs hollow."""
    grid = lines(runs, x, y, errorbar="sd", err_style="bars")
    color = colors(runs["row"])
    for (section, row, place), group in runs.groupby(["section", "row", x], sort=False):
        if len(group) == 1:
            point: dict[str, Any] = {"marker": "o", "mfc": "white", "mec": color[row], "zorder": 9}
            grid.axes_dict[section].plot(place, group[y].iloc[0], **point)
            grid.set_xlabels(f"{LABELS[x]} (hollow points: one run)")
    return grid


def by_depth(
    runs: Frame, name: str, paper: Callable[[RunConfig], float | None], whose: str = "the paper's"
) -> Picture:
    """Accuracy by depth of labelled runs, beside the paper's."""
    grid = over_seeds(runs, "depth").set(xticks=sorted(set(runs["depth"])))
    printed = runs.assign(paper=[paper(config) for config in runs["config"]]).dropna(subset="paper")
    for (section, row), points in printed.groupby(["section", "row"], sort=False):
        points = points.drop_duplicates("depth").sort_values("depth")
        color = colors(runs["row"])[row]
        grid.axes_dict[section].plot(points["depth"], points["paper"], color=color, **_PAPER)
    entitle(grid.figure, "Accuracy by number of convolutions", runs)
    shows = "Test accuracy by number of convolutions, a line per row; dashed diamonds, "
    return Picture(name, f"{shows}{whose}; {BARS}", grid.figure)


def differences(sections: Sequence[Section], runs: Frame, name: str) -> Iterator[Picture]:
    """The differences in sections of `compare` with their intervals, beside the paper's."""
    panels = [each for each in sections if any(row["difference"] for row in each.rows)]
    if not panels:
        return
    most = max(len(section.rows) for section in panels)
    size = {"figsize": (4.5 * len(panels) + 1.5, 1.6 + 0.3 * most), "layout": "constrained"}
    figure, every = plt.subplots(1, len(panels), squeeze=False, **size)
    for axes, section in zip(every[0], panels, strict=True):
        papers = {row["row"]: row.get("paper") for row in section.rows}
        rows = [row for row in section.rows if row["difference"]]
        for place, row in enumerate(rows):
            points, control = row["difference"], papers[row["to"]]
            if points.low is None:
                axes.plot(points.mean, place, "o", mfc="white", mec="C0")
            else:
                ends = [[points.mean - points.low], [points.high - points.mean]]
                axes.errorbar(points.mean, place, xerr=ends, fmt="o", color="C0")
            if control and papers[row["row"]]:
                axes.plot(papers[row["row"]] - control, place, color="k", **_PAPER)
        axes.axvline(0, color="0.4", ls="--")
        axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
        diamonds = "\n(diamonds: the paper's)" if any(papers.values()) else ""
        label = f"points of accuracy minus {rows[0]['to']}'s{diamonds}"
        axes.set_title(textwrap.fill(section.title, 40), fontsize=10)
        axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    entitle(figure, "Differences", runs)
    shows = "Differences in accuracy and their simultaneous 95 % intervals; hollow points have none"
    if any(row.get("paper") for section in panels for row in section.rows):
        shows += ", diamonds are the paper's"
    yield Picture(name, shows, figure)
