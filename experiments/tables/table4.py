"""Table IV and Figure 4: S1 time and again."""

from functools import partial

from experiments.tables import fusion_weights, paper
from experiments.tables.compare import compare

TITLE = "Table IV and Figure 4: S1 time and again"
SEEDS = tuple(range(30))
DATASETS = ("cifar10",)


def recipes(base):
    return [base.replace(method="S1")]


def report(runs):
    yield from compare(runs, paper=partial(paper.repeated, "4", "S1"))
    yield from fusion_weights.report(runs, "figure4")
