"""Not in the paper: accuracy by learning rate, and each method at the rate that is best for it.

At one rate the method with the larger effective step wins, whatever else it does: four losses in
place of one, or a larger output, are a larger step. So a method is also judged at its own best
rate, chosen on held-out training examples.
"""

from collections.abc import Iterator

from experiments.cli.configuration import Configuration
from experiments.tables import pictures
from experiments.tables.frame import Results
from experiments.tables.table import Detail, Picture, Table


def _label(method: str, auxiliary_mean: float) -> str:
    return f"{method} + {auxiliary_mean:g} x mean of branch losses" if auxiliary_mean else method


def _best(results: Results) -> Iterator[Detail]:
    """Per dataset, each method at the rate with the highest mean validation accuracy."""
    best: dict[str, dict[str, tuple[float, Configuration]]] = {}
    for cell, runs in results.with_runs():
        validation = runs["validation_accuracy"].dropna().astype(float)
        rows = best.setdefault(cell.flags.dataset, {})
        label = _label(cell.flags.method, cell.flags.auxiliary_mean)
        if len(validation) and validation.mean() > rows.get(label, (-1.0,))[0]:
            rows[label] = validation.mean(), cell.flags
    for dataset, rows in best.items():
        figures = [
            {
                "row": label,
                "learning rate": f"{flags.learning_rate:g}",
                "validation accuracy": validation,
                "test accuracy": results.of(flags)["test_accuracy"].mean(),
                "less Normal at its own best": None
                if label == "Normal"
                else results.difference(flags, rows.get("Normal", (0, None))[1]),
            }
            for label, (validation, flags) in rows.items()
        ]
        note = "The rate is chosen on held-out training examples; its test accuracy is reported."
        yield Detail("best", f"{dataset}, each method at its own best learning rate", figures, note)


def _pictures(results: Results) -> Iterator[Picture]:
    labels = [
        _label(*each)
        for each in zip(results.runs["method"], results.runs["auxiliary_mean"], strict=True)
    ]
    runs = results.runs.assign(label=labels)
    grid = pictures.lines(
        runs, "learning_rate", "test_accuracy", "label", col="dataset", **pictures.OVER_SEEDS
    )
    grid.set(xscale="log")
    shows = "Test accuracy by learning rate, a line per method; bars are standard deviations"
    yield "rates", f"{shows} over seeds", grid.figure


TABLE = Table(
    name="rates",
    title="Not in the paper: the methods by learning rate",
    seeds=3,
    axes={
        "dataset": ("cifar10",),
        "learning_rate": (1e-3, 3e-3, 1e-2, 3e-2),
        "depth": (13,),
        "method auxiliary_mean": (
            *((method, 0.0) for method in ("Normal", "Scaled", "S0", "S1", "DSN")),
            ("S1", 1.0),
        ),
    },
    sections=("dataset", "learning_rate"),
    details=_best,
    pictures=_pictures,
)
