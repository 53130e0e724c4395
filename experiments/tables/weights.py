"""Not in the paper: an extremely deep network's weights after the paper's 40 epochs."""

from experiments.tables import deep

TITLE = "Not in the paper: an extremely deep network's weights after the paper's 40 epochs"
SEEDS = (0, 1, 2)
DATASETS = ("fashion_mnist",)
NOTE = deep.MIXED


def recipes(base):
    return [base.replace(method="S1", depth=deep.FAILS, epochs=40)]


def report(runs):
    yield from deep.by_epochs(runs, "weights")
