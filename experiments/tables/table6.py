"""Table VI, and what it leaves open: extremely deep networks."""

import matplotlib.pyplot as plt

from experiments.tables import deep, paper, pictures
from experiments.tables.compare import FIRST_ROW, compare, labelled
from experiments.tables.presets import grid
from experiments.tables.report import Picture
from experiments.tables.runs import by_branch
from interflow_jax.cli import charts

TITLE = "Table VI: extremely deep networks (S1 is the paper's Interflow)"
SEEDS = (0, 1, 2)
DATASETS = (deep.DATASET,)
NOTE = f"{deep.MIXED} The paper's figures are of {deep.DATASET}."

_DEEPEST = 100


def recipes(base):
    depths = range(40, _DEEPEST + 1, 10)
    fails = grid(base, depth=(deep.FAILS,), method=("Aux", "DSN"))
    return [*grid(base, depth=depths, method=("Normal", "S1")), *fails]


def report(runs):
    sections = list(compare(runs, sections=deep.PLACES, paper=_paper, may_fail=True))
    yield from sections
    named = labelled(runs, sections=deep.PLACES)
    if runs["depth"].nunique() > 1:
        told = {"may_fail": True, "key": "cost_of_depth", "about": ": what depth costs"}
        yield from compare(runs, ("depth",), ("dataset", "layout", "method"), FIRST_ROW, **told)
    yield from deep.weights(named)
    by_layout = labelled(runs, sections=("dataset", "layout"), along=("depth",))
    yield pictures.by_depth(by_layout, "table6", _paper, f"the paper's on {deep.DATASET}")
    yield from _branches(by_layout)
    ends = named[named["depth"].isin((deep.FAILS, _DEEPEST))]
    yield from deep.learning_curves(ends, "table6-learning")


def _paper(config):
    method = "Interflow" if config.model.method == "S1" else config.model.method
    return paper.value("6", str(config.model.depth), method)


def _branches(runs):
    """Weights and accuracies of S1's branches by depth."""
    of_s1 = by_branch(runs[runs["method"] == "S1"])
    for section, inside in of_s1.groupby("section", sort=False):
        size = (8.5, 2 * (1.3 + 0.35 * inside["depth"].nunique()))  # inches
        chart, panels = plt.subplots(2, 1, figsize=size, layout="constrained")
        by_place = inside.assign(weight=inside["weight"].abs()).groupby(["depth", "branch"])
        kinds = {"weight": "absolute weight", "alone": "accuracy alone (%)"}
        for axes, (column, label) in zip(panels, kinds.items(), strict=True):
            values = by_place[column].mean().unstack().astype(float)
            rows, columns = (list(map(str, names)) for names in (values.index, values.columns))
            charts.heatmap(axes, values.to_numpy(), rows, columns)
            axes.set(title=label, ylabel="depth", xlabel="branch, shallow to deep")
        pictures.entitle(chart, "Branches, means over seeds", inside)
        apart = [section] if of_s1["section"].nunique() > 1 else []
        shows = "Two heat maps by depth and branch, shallow to deep: the absolute weight, and the "
        name = pictures.stem("table6-branches", *apart)
        yield Picture(name, f"{shows}test accuracy of the branch alone", chart)
