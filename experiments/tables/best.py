"""Not in the paper: the methods at their own best learning rates, with seeds not used to choose."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.sweep.record import Record
from experiments.tables import rates
from experiments.tables.frame import Results
from experiments.tables.methods import above_normal, claims
from experiments.tables.table import Choice, Table

METHODS = ("Normal", "S1", "S3", "DSN")
FIRST_SEED = 100  # far from those of any other table


def _at_best_rates(choice: Choice, record: Record, out: Path) -> Choice:
    """The choice with every method at the rate that the runs of the table `rates` chose.

    Raises:
      ValueError: for a method without runs at every rate, or seeds that chose the rates.
    """
    given = choice.axes.get("method", METHODS)
    methods = dict.fromkeys(("Normal", *given))
    sweep = replace(choice, axes=choice.axes | {"method": tuple(methods)}, seeds=None)
    chosen_by = rates.TABLE.run_seeds(sweep)
    if common := set(TABLE.run_seeds(choice)) & set(chosen_by):
        raise ValueError(f"seed {min(common)} chose the learning rates; give --seeds that did not")
    results = Results(rates.TABLE.cells(sweep), chosen_by, record, out)
    fields = {name for axis in (*TABLE.axes, *choice.axes) for name in axis.split()}
    advice = "leave out by --learning_rates one that cannot be trained, or first train "
    advice += f"--table=rates --methods={','.join(methods)} with the same flags"
    return rates.at_best_rates(choice, results, tuple(sorted(fields)), advice)


TABLE = Table(
    name="best",
    title="Not in the paper: the methods at their own best learning rates",
    seeds=8,
    first_seed=FIRST_SEED,
    axes={
        "dataset": ("cifar10",),
        "depth": (13,),
        "method": METHODS,
        "learning_rate": rates.TABLE.axes["learning_rate"],
    },
    rows=("method", "learning_rate"),
    reference=("Normal",),
    note="The rates are those that `--table=rates` chose on held-out examples, with other seeds.",
    holds_out=True,
    narrow=_at_best_rates,
    details=claims,
    pictures=partial(above_normal, "best"),
)
