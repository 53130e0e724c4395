"""Not in the paper: extremely deep networks, trained four times as long."""

from experiments.tables import deep
from experiments.tables.presets import grid

TITLE = "Not in the paper: extremely deep networks, trained longer"
SEEDS = (0, 1, 2, 3, 4)
DATASETS = ("fashion_mnist",)
NOTE = deep.MIXED


def recipes(base):
    epochs = (base.epochs(), 4 * base.epochs())
    return grid(base, depth=(deep.FAILS,), epochs=epochs, method=("Normal", "S1"))


def report(runs):
    yield from deep.by_epochs(runs, "longer")
