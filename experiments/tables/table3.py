"""Tables II and III: the methods, and how accurate each is on every dataset."""

from experiments.tables import paper, pictures
from experiments.tables.compare import compare
from experiments.tables.presets import grid
from experiments.tables.report import Section
from experiments.tables.statistics import Family
from interflow_jax.config import VGG
from interflow_jax.methods import BASELINES, METHODS
from interflow_jax.vgg import VGG_DEPTH

TITLE = "Table III: accuracy of the methods, and of two baselines"
SEEDS = (0, 1, 2, 3, 4)
DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "kmnist", "fashion_mnist")

_LEARNED_OVER_FIXED = (("S1", "S0"), ("S2", "S0"), ("S6", "S5"), ("S7", "S5"))
_GIVEN_OVER_RANDOM = (("S2", "S1"), ("S4", "S3"), ("S7", "S6"), ("S9", "S8"))
_FUSION_OVER_LOSSES = (("S1", "Aux"), ("S1", "DSN"))
CLAIMS = (*_LEARNED_OVER_FIXED, *_GIVEN_OVER_RANDOM, *_FUSION_OVER_LOSSES)
"""Pairs of methods, the first of which is ahead according to the paper (IV-D, II-A)."""


def table_2():
    """Table II, from the methods as the code has them."""
    lines = [
        "| method | branches after convolutions | fusion | initial weights |",
        "| --- | --- | --- | --- |",
    ]
    for name, method in (METHODS | BASELINES).items():
        start = "Xavier" if method.fusion != "fixed" else "the last branch alone"
        if isinstance(method.initial_weights, int | float):
            start = f"{method.initial_weights:.3g} each"
        elif method.initial_weights is not None:
            start = ", ".join(f"{weight:.3g}" for weight in method.initial_weights)
        if name in BASELINES:
            start += " (a baseline, not the paper's)"
        taps = ", ".join(map(str, method.taps))
        lines.append(f"| {name} | {taps} | {method.fusion} | {start} |")
    return "\n".join(lines)


def recipes(base):
    return grid(base, method=(*METHODS, "Aux", "DSN"))


def report(runs):
    yield from compared(runs, "table3", paper=paper_accuracy)


def compared(runs, name, **options):
    """Methods beside Normal, what the paper claims of them, and a picture of the differences."""
    sections = list(compare(runs, **options))
    yield from sections
    yield from claims(sections, runs)
    yield from pictures.differences(sections, runs, name)


def paper_accuracy(config):
    """The paper's Table III, which is for its own network with 13 convolutions."""
    if (config.model.backbone, config.model.depth) != (VGG, VGG_DEPTH):
        return None
    return paper.value("3", config.model.method, config.data.dataset)


def claims(sections, runs):
    """Differences between rows of a section where the paper says which method is ahead."""
    outcome = runs.set_index("run")["late_accuracy"]
    for section in sections:
        family = Family({row["row"]: outcome[row["runs"].names] for row in section.rows})
        rows = {row["method"]: row["row"] for row in reversed(section.rows)}
        pairs = [(rows[a], rows[b]) for a, b in CLAIMS if {a, b} <= rows.keys()]
        told = [
            {"row": " minus ".join(pair), "difference": family.between([pair])[pair[0]]}
            for pair in pairs
        ]
        if told:
            title = f"{section.title}: what the paper says is ahead"
            yield Section(title, told, "claims", str(family))
