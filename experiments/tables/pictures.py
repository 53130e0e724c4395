"""What the pictures of the tables share."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.runs import charts
from experiments.tables.frame import Results
from experiments.tables.table import Picture

MOST_NUMBERED = 20  # the most columns for which a heat map's cells have room for figures
LABELS = {
    "depth": "convolutions",
    "after": "branch after convolution",
    "learning_rate": "learning rate",
    **dict.fromkeys(("test_accuracy", "alone"), "test accuracy (%)"),
}
OVER_SEEDS = {"errorbar": "sd", "err_style": "bars"}
"""Options of `lines`: means over seeds, and their standard deviations as bars."""


def save(pictures: Iterable[Picture], out: Path) -> list[dict[str, str]]:
    """Writes pictures as PNG; returns their names in OUT, and what they show in words."""
    saved = []
    with plt.rc_context({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120}):
        for stem, shows, chart in pictures:
            charts.save(chart, out / f"{stem}.png")
            saved.append({"file": f"{stem}.png", "shows": shows})
    return saved


def stem(*parts: Any) -> str:
    """A file's name, without extension, of characters that need no escaping in a Markdown link."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, parts))).strip("-")


def whole_numbers(axes: Axes) -> None:
    """Puts ticks of x at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def lines(runs: pd.DataFrame, x: str, y: str, line: str = "row", **options: Any) -> sns.FacetGrid:
    """Lines that differ by colour and marker, a panel per `col`, by default the section."""
    options = {
        **{"hue": line, "style": line, "col": "section", "palette": "tab10"},
        **{"markers": True, "dashes": False, "facet_kws": {"sharex": False}},
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


def colors(names: pd.Series) -> dict[str, Any]:
    """The colours that `lines` gives to names."""
    return dict(zip(names.unique(), sns.color_palette("tab10"), strict=False))


def by_depth(
    results: Results, line: str, *panels: str, printed_of: str = "the paper's"
) -> tuple[str, Figure]:
    """Accuracy by depth beside the paper's: what the picture shows, and the picture."""
    runs = results.runs.assign(panel=results.runs[list(panels)].agg(", ".join, axis=1))
    grid = lines(runs, "depth", "test_accuracy", line, col="panel", **OVER_SEEDS)
    printed: dict[str, dict[int, float]] = {}
    for cell in results.cells:
        if cell.paper is not None:
            printed.setdefault(getattr(cell, line), {})[cell.flags.depth] = cell.paper
    common = len({str(each) for each in printed.values()}) == 1  # to all lines
    for axes in grid.axes.flat:
        for name, each in printed.items():
            color = "black" if common else colors(runs[line]).get(name)
            axes.plot(list(each), list(each.values()), "D--", mfc="none", color=color)
        axes.set_xticks(sorted({cell.flags.depth for cell in results.cells}))
    names = ", ".join(runs[line].unique())
    shows = f"Test accuracy by number of convolutions, a line each for {names}; dashed diamonds, "
    return f"{shows}{printed_of}; bars are standard deviations over seeds", grid.figure


def heatmap(axes: Axes, values: pd.DataFrame, bound: float | None = None) -> None:
    """Colours and, where there is room, figures; without a bound, all values are positive."""
    high = float(np.nanmax(values)) if bound is None else bound
    sns.heatmap(
        values,
        ax=axes,
        vmin=0.0 if bound is None else -bound,
        vmax=high,
        cmap="Blues" if bound is None else "RdBu_r",
        annot=values.shape[1] <= MOST_NUMBERED,
        fmt=f"z.{1 if high >= 10 else 2}f",
        annot_kws={"fontsize": 8},
    )
    axes.tick_params(axis="y", rotation=0)
    axes.grid(visible=False)  # it would cross out the figures
