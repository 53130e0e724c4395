"""Tables II and III: the methods, and how accurate each is on every dataset."""

from experiments.tables import paper, pictures
from experiments.tables.compare import compare
from experiments.tables.presets import grid
from interflow_jax.config import VGG
from interflow_jax.methods import BASELINES, METHODS, default_taps
from interflow_jax.vgg import VGG_DEPTH

TITLE = "Table III: accuracy of the methods, and of two baselines"
SEEDS = (0, 1, 2, 3, 4)
DATASETS = ("cifar10", "cifar100", "svhn", "mnist", "kmnist", "fashion_mnist")


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
    sections = list(compare(runs, paper=paper_accuracy))
    yield from sections
    yield from pictures.differences(sections, runs, "table3")


def paper_accuracy(config):
    """The paper's Table III, which is for its own network with 13 convolutions and its own taps."""
    model = config.model
    network = model.backbone, model.depth, model.resolved_taps(), model.fusion
    if network != (VGG, VGG_DEPTH, default_taps(model.method), None):
        return None
    return paper.value("3", model.method, config.data.dataset)
