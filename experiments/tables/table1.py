"""Table I: accuracy by depth without Interflow, for both readings of where stride 2 is."""

from experiments.tables import paper, pictures
from experiments.tables.compare import ROW_ABOVE, compare, labelled
from experiments.tables.presets import grid
from experiments.tables.report import Section
from experiments.tables.runs import finished
from experiments.tables.statistics import Family

TITLE = "Table I: accuracy by depth, without Interflow"
SEEDS = (0, 1, 2)
DATASETS = ("cifar10",)


def recipes(base):
    return grid(base, downsample=("first", "last"), method=("Normal",), depth=range(4, 14))


def report(runs):
    yield from compare(runs, ("depth",), ("dataset", "downsample", "method"), ROW_ABOVE, _paper)
    yield from _readings(finished(runs))
    by_reading = labelled(runs, ("downsample",), ("dataset", "method"), along=("depth",))
    yield pictures.by_depth(by_reading, "table1", _paper)


def _paper(config):
    of_paper = (config.data.dataset, config.model.method) == ("cifar10", "Normal")
    return paper.value("1", str(config.model.depth), "accuracy") if of_paper else None


def _readings(runs):
    """One reading minus the other at every depth."""
    for (dataset, method), inside in runs.groupby(["dataset", "method"], sort=False):
        family = Family(dict(iter(inside.groupby(["downsample", "depth"])["late_accuracy"])))
        depths = sorted(set(inside["depth"]))
        apart = family.between([(("first", depth), ("last", depth)) for depth in depths])
        rows = [{"row": f"depth {place[1]}", "difference": each} for place, each in apart.items()]
        if rows:
            title = f"{dataset}, {method}: downsample first minus last"
            yield Section(title, rows, "readings", str(family))
