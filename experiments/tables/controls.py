"""Not in the paper: does fusion help, beside the controls that could have done the same?

Against Normal: superfluous depth (nine layers), the size of the output (S0), a linear layer on all
pooled features (Concat), fusion without the short cut of the gradient (Detached), losses of the
branches' own (DSN, auxiliary mean 1), weights that see the image (attention). Then the same against
S1: what S1 is no different from would explain as much. And does S1 help nine layers, too?
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

_FEWER = SEEDS[:10]  # where half an interval may be more than 0.4 points
PLACES = ("dataset", "learning_rate")
ROWS = ("method", "depth", "auxiliary_mean", "fusion")
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
    {"method": "S1", "depth": 9, "taps": (3, 5, 7, 9)},
)


def recipes(base):
    return [
        base.replace(learning_rate=rate, seeds=seeds, **fields)
        for rate, seeds, rows in (
            (3e-2, None, _AT_BOTH),
            (3e-2, _FEWER, _AT_THE_HIGHER),
            (1e-2, _FEWER, _AT_BOTH),
        )
        for fields in rows
    ]


def report(runs):
    sections = list(compare(runs, ROWS, PLACES))
    yield from sections
    yield from compare(runs, ROWS, PLACES, "S1", key="beside_s1", about=", S1 as the control")
    yield from pictures.differences(sections, runs, "controls")
