"""Table I: accuracy by depth without Interflow, for both readings of where stride 2 is."""

from experiments.tables import paper, pictures
from experiments.tables.compare import ROW_ABOVE, compare, labelled
from experiments.tables.presets import grid
from experiments.tables.runs import finished

TITLE = "Table I: accuracy by depth, without Interflow"
SEEDS = (0, 1, 2)
DATASETS = ("cifar10",)


def recipes(base):
    return grid(base, downsample=("first", "last"), method=("Normal",), depth=range(4, 14))


def report(runs):
    yield from compare(runs, ("depth",), ("dataset", "downsample", "method"), ROW_ABOVE, _paper)
    if finished(runs)["downsample"].nunique() > 1:
        places = ("dataset", "method", "depth")
        yield from compare(runs, ("downsample",), places, "last", _paper, key="readings")
    by_reading = labelled(runs, ("downsample",), ("dataset", "method"), along=("depth",))
    yield pictures.by_depth(by_reading, "table1", _paper)


def _paper(config):
    of_paper = (config.data.dataset, config.model.method) == ("cifar10", "Normal")
    return paper.value("1", str(config.model.depth), "accuracy") if of_paper else None
