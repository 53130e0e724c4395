"""Not in the paper: the methods at their own best learning rates, with seeds not used to choose."""

from experiments.tables import pictures, rates
from experiments.tables.compare import compare
from experiments.tables.presets import grid

TITLE = "Not in the paper: the methods at their own best learning rates"
SEEDS = tuple(range(100, 108))  # far from those of any other table
DATASETS = ("cifar10",)
HOLDS_OUT = True
CHOOSE = "rates", rates.SEEDS
NOTE = "The rates are those that `--table=rates` chose on held-out examples, with other seeds."


def recipes(base):
    return grid(base, method=("Normal", "S1", "S3", "DSN"), learning_rate=rates.RATES)


def report(runs):
    sections = list(compare(runs))
    yield from sections
    yield from pictures.differences(sections, runs, "best")
