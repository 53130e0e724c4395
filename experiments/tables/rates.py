"""Not in the paper: accuracy by learning rate, and each method at the rate that is best for it.

Where the rate is far below the best, a method can win by larger steps alone: four losses in place
of one, or a larger output, make them larger. So a method is also judged at its own best rate,
chosen on held-out training examples.
"""

import pandas as pd

from experiments.tables import pictures
from experiments.tables.compare import compare, labelled
from experiments.tables.plan import best_rates, kind
from experiments.tables.report import Picture
from interflow_jax.optimizer import LEARNING_RATE

TITLE = "Not in the paper: the methods by learning rate"
SEEDS = (0, 1, 2)
DATASETS = ("cifar10",)
HOLDS_OUT = True
NOTE = """\
Rates are chosen on training images that no run trains on (all of them where every run measured
that, else a tenth as many as are trained on), by the last epoch and the mean over runs; of a split
that would train whole, nine tenths are trained on."""

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_METHODS = {  # with weights of the mean of the branches' own losses
    "Normal": (0.0,),
    "Scaled": (0.0,),
    "S0": (0.0,),
    "S1": (0.0, 1.0),
    "Aux": (0.0, 0.3),
    "DSN": (0.0, 1.0),
}
_ROWS = ("method", "auxiliary_mean")


def recipes(base):
    return [
        base.replace(learning_rate=rate, method=method, auxiliary_mean=auxiliary_mean)
        for rate in RATES
        for method, means in _METHODS.items()
        for auxiliary_mean in means
    ]


def report(runs):
    yield from compare(runs, _ROWS, ("dataset", "learning_rate"))
    yield from _at_best(runs)
    yield _picture(labelled(runs, _ROWS, along=("learning_rate",)))


def _at_best(runs):
    """Every row at its own best rate, of those with runs at every rate."""
    best = best_rates(runs)
    config, kinds = runs["config"].map(lambda run: run.replace(seed=0)), runs["config"].map(kind)
    told = [
        runs[config == at_best].assign(chosen=[columns] * int((config == at_best).sum()))
        for at_best, columns in (best[each] for each in kinds.unique() if each in best)
    ]
    if told:
        runs = pd.concat(told)
        about = ", each method at its own best learning rate"
        yield from compare(runs, _ROWS, key="best", about=about)


def _picture(runs):
    grid = pictures.over_seeds(runs, "learning_rate")
    grid.set(xscale="log")
    rates = sorted(runs["learning_rate"].unique())
    for axes in grid.axes.flat:
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        axes.axvline(LEARNING_RATE, color="0.4", ls=":")
        place = {"xycoords": axes.get_xaxis_transform(), "rotation": 90, "va": "bottom"}
        axes.annotate(" the paper's rate", (LEARNING_RATE, 0), **place)
    pictures.entitle(grid.figure, "Accuracy by learning rate", runs)
    shows = "Test accuracy by learning rate, a line per method, dotted the paper's rate; "
    return Picture("rates", f"{shows}{pictures.BARS}", grid.figure)
