"""Not in the paper: an extremely deep network's weights after the paper's 40 epochs."""

from experiments.tables import deep
from experiments.tables.compare import compare, labelled
from experiments.tables.presets import grid

TITLE = "Not in the paper: an extremely deep network's weights after the paper's 40 epochs"
SEEDS = (0, 1, 2)
DATASETS = ("fashion_mnist",)
NOTE = deep.MIXED


def recipes(base, methods=("S1",), depths=(deep.FAILS,), layouts=("spread",)):
    base = base.replace(epochs=40)
    return grid(base, depth=sorted(depths), layout=layouts, method=methods)


def report(runs):
    places = (*deep.PLACES, "epochs")
    yield from compare(runs, sections=places, may_fail=True)
    named = labelled(runs, sections=places)
    yield from deep.weights(named)
    yield from deep.learning_curves(named, "weights")
    yield from deep.weights_by_epoch(named, "weights-by-epoch")
