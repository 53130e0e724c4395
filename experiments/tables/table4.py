"""Table IV and Figure 4: S1 time and again."""

from experiments.tables import fusion_weights

TITLE = "Table IV and Figure 4: S1 time and again"
SEEDS = tuple(range(30))
DATASETS = ("cifar10",)


def recipes(base):
    return [base.replace(method="S1")]


def report(runs):
    yield from fusion_weights.report(runs, "figure4")
