"""Not in the paper: the methods at their own best learning rates, with seeds not used to choose."""

from experiments.tables import rates
from experiments.tables.table3 import compared

TITLE = "Not in the paper: the methods at their own best learning rates"
SEEDS = tuple(range(100, 108))  # far from those of any other table
DATASETS = ("cifar10",)
HOLDS_OUT = True
CHOOSE = "rates", rates.SEEDS
NOTE = "The rates are those that `--table=rates` chose on held-out examples, with other seeds."


def recipes(base, methods=("Normal", "S1", "S3", "DSN"), learning_rates=rates.RATES):
    return rates.recipes(base, dict.fromkeys(("Normal", *methods)), learning_rates)


def report(runs):
    yield from compared(runs, "best")
