"""Not in the paper's setting: deep networks at a rate at which they learn.

The paper's plain network fails at depth 60 (Table VI). Is that degradation, or steps that explode
before BatchNorm's statistics follow? So all are trained at 1e-2, also with a warm-up, and tested
with recalibrated statistics; Concat stands for any short cut of the gradient.
"""

from experiments.tables import deep
from experiments.tables.compare import compare, labelled
from experiments.tables.presets import grid

TITLE = (
    "Not in the paper's setting: deep networks at 1e-2, with a warm-up and recalibrated statistics"
)
SEEDS = (0, 1, 2, 3, 4)
DATASETS = (deep.DATASET,)
NOTE = f"""\
{deep.MIXED} Layers beyond the 13th are appended at the last scale. Rows are compared by the last
epoch's accuracy with recalibrated statistics: with the running ones, the accuracy of deep networks
jumps from epoch to epoch."""

_WARM_UP = 3.0  # epochs
_ROWS = ("method", "warmup_epochs")


def recipes(base):
    base = base.replace(learning_rate=1e-2, layout="append")
    return [
        *grid(base, depth=(20, 40, deep.FAILS), method=("Normal", "S1", "Concat")),
        *grid(
            base.replace(seeds=SEEDS[:3]),
            depth=(deep.FAILS,),
            method=("Normal", "S1"),
            warmup_epochs=(_WARM_UP,),
        ),
    ]


def report(runs):
    judged = {"may_fail": True, "outcome": "recalibrated_accuracy"}
    yield from compare(runs, _ROWS, deep.PLACES, **judged)
    named = labelled(runs, _ROWS, deep.PLACES)
    yield from deep.weights(named)
    yield from deep.learning_curves(named, "degradation-learning")
