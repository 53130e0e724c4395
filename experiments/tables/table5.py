"""Table V: S3's mean weights."""

from functools import partial

from experiments.tables import fusion_weights, paper
from experiments.tables.compare import compare

TITLE = "Table V: S3's mean weights"
SEEDS = tuple(range(10))
DATASETS = ("cifar10",)


def recipes(base):
    return [base.replace(method="S3")]


def report(runs):
    yield from compare(runs, paper=partial(paper.repeated, "7", "S3"))
    yield from fusion_weights.report(runs, "table5")
