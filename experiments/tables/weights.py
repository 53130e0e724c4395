"""Not in the paper: an extremely deep network's weights after the paper's 40 epochs."""

from experiments.tables import deep
from experiments.tables.compare import compare, labelled

TITLE = "Not in the paper: an extremely deep network's weights after the paper's 40 epochs"
SEEDS = (0, 1, 2)
DATASETS = ("fashion_mnist",)
NOTE = deep.MIXED


def recipes(base):
    return [base.replace(method="S1", depth=deep.FAILS, epochs=40)]


def report(runs):
    places = (*deep.PLACES, "epochs")
    yield from compare(runs, sections=places, may_fail=True)
    named = labelled(runs, sections=places)
    yield from deep.weights(named)
    yield from deep.learning_curves(named, "weights")
    yield from deep.weights_by_epoch(named, "weights-by-epoch")
