"""Table V: S3's mean weights."""

from experiments.tables import fusion_weights

TITLE = "Table V: S3's mean weights"
SEEDS = tuple(range(10))
DATASETS = ("cifar10",)


def recipes(base):
    return [base.replace(method="S3")]


def report(runs):
    yield from fusion_weights.report(runs, "table5")
