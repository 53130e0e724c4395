"""Not in the paper: does fusion help, beside the controls that could have done the same?

Against Normal: superfluous depth (nine layers), the size of the output (S0), a linear layer on all
pooled features (Concat), fusion without the short cut of the gradient (Detached), losses of the
branches' own (DSN, auxiliary mean 1), weights that see the image (attention). Then the same against
S1: whatever S1 is not ahead of explains as much as it does.
"""

from experiments.tables import pictures
from experiments.tables.compare import compare

TITLE = "Not in the paper: does fusion help? The controls"
SEEDS = (0, 1, 2, 100, 101, 102, 3, 4, 5, 6, 7, 8, 9, 10)  # 100 to 102 chose no rate
DATASETS = ("cifar10",)
HOLDS_OUT = True
NOTE = """\
Two families of rows: one with Normal at 13 layers as its control, one with S1. Concat is one linear
layer on the pooled features of all branches; Detached is S1 without gradients from its shallow
branches into the backbone."""

RATES = (3e-2, 1e-2)
_ROWS = ("method", "depth", "auxiliary_mean", "fusion")
_AT_BOTH = (
    {"method": "Normal"},
    {"method": "Normal", "depth": 9},
    {"method": "S1"},
    {"method": "Concat"},
)
_AT_THE_HIGHER = (
    *({"method": name} for name in ("S0", "S3", "Detached", "DSN")),
    {"method": "S1", "auxiliary_mean": 1.0},
    {"method": "S1", "fusion": "attention"},
)


def recipes(base):
    return [
        base.replace(learning_rate=rate, **fields)
        for rate, rows in zip(RATES, (_AT_BOTH + _AT_THE_HIGHER, _AT_BOTH), strict=True)
        for fields in rows
    ]


def most_runs(config):
    """Of the table's seeds: all where half an interval is to be 0.4 points, at the higher rate."""
    row = {"method": config.model.method, "depth": config.model.depth}
    plain = not config.training.auxiliary_mean and config.model.fusion is None
    precise = config.training.learning_rate == RATES[0] and plain
    return len(SEEDS) if precise and any(row | each == row for each in _AT_BOTH) else 10


def report(runs):
    places = ("dataset", "learning_rate")
    sections = list(compare(runs, _ROWS, places))
    yield from sections
    yield from compare(runs, _ROWS, places, "S1", key="beside_s1", about=", S1 as the control")
    yield from pictures.differences(sections, runs, "controls")
