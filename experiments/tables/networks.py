"""Not in the paper: Interflow on networks whose shallow layers have other paths for gradients."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments.cli.configuration import Configuration
from experiments.sweep.record import Record
from experiments.tables import rates
from experiments.tables.frame import Results
from experiments.tables.methods import above_normal, claims
from experiments.tables.table import Choice, Detail, Table

_NETWORK = "backbone backbone_options taps optimizer schedule epochs learning_rate"
_RESNET = (
    "experiments.tables.backbones:ResNet",
    "width=8",  # an eighth of ResNet-18's
    tuple(f"stage{stage}_block2" for stage in range(1, 5)),
    *("sgd", "step", 20),
)
_VIT = (
    "experiments.tables.backbones:ViT",
    None,
    tuple(f"block{block}" for block in range(1, 5)),
    *("adamw", "cosine", 60),
)
_RATES = {_RESNET: (1e-2, 3e-2, 1e-1), _VIT: (1e-3, 3e-3, 1e-2)}
CHOOSES = (0,)
"""The seed whose runs choose the learning rates."""


def _at_best_rates(choice: Choice, record: Record, out: Path) -> Choice:
    """With the seed that chooses, every rate; with others, each method at the rate chosen for it.

    Raises:
      ValueError: for a method without a run at every rate.
    """
    if choice.seeds == CHOOSES:
        return choice
    if set(CHOOSES) & set(TABLE.run_seeds(choice)):
        raise ValueError(f"seed {CHOOSES[0]} chooses the learning rates; give it alone, or others")
    results = Results(TABLE.cells(choice), CHOOSES, record, out)
    advice = f"first train --table=networks --seeds={CHOOSES[0]} with the same flags"
    names = ("dataset", "method", *_NETWORK.split())
    return rates.at_best_rates(choice, results, names, advice)


def _details(results: Results) -> Iterator[Detail]:
    """What the paper says is ahead, and how the learning rates were chosen."""
    if results.seeds != CHOOSES:
        yield from claims(results)
    yield from rates.how_chosen(results, _rates_of, CHOOSES, ("method",))


def _rates_of(flags: Configuration) -> tuple[float, ...]:
    return next((each for network, each in _RATES.items() if network[0] == flags.backbone), ())


TABLE = Table(
    name="networks",
    title="Not in the paper: a residual network and a transformer",
    seeds=3,
    first_seed=1,
    axes={
        "dataset": ("cifar10",),
        _NETWORK: tuple((*network, rate) for network, each in _RATES.items() for rate in each),
        "method": ("Normal", "S1", "S3", "DSN"),
    },
    rows=("method", "learning_rate"),
    decides=("learning_rate",),
    sections=("dataset", "backbone"),
    reference=("Normal",),
    note="The networks are those of `experiments/tables/backbones.py`: 16 and 4 million operations "
    "an image, where the paper's backbone at width 1/8 has 10. The learning rates are those that "
    "did best on held-out examples with seed 0.",
    holds_out=True,
    narrow=_at_best_rates,
    details=_details,
    pictures=partial(above_normal, "networks"),
)
