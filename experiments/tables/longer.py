"""Not in the paper: extremely deep networks, trained four times as long."""

from experiments.tables import deep
from experiments.tables.compare import compare, labelled
from experiments.tables.presets import grid

TITLE = "Not in the paper: extremely deep networks, trained longer"
SEEDS = (0, 1, 2, 3, 4)
DATASETS = ("fashion_mnist",)
NOTE = deep.MIXED


def recipes(base):
    epochs = (base.epochs(), 4 * base.epochs())
    return grid(base, depth=(deep.FAILS,), epochs=epochs, method=("Normal", "S1"))


def report(runs):
    places = (*deep.PLACES, "epochs")
    yield from compare(runs, sections=places, may_fail=True)
    named = labelled(runs, sections=places)
    yield from deep.weights(named)
    yield from deep.learning_curves(named, "longer")
    yield from deep.weights_by_epoch(named, "longer-by-epoch")
