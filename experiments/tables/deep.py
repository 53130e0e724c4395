"""What the tables of extremely deep networks share: runs that begin to learn, weights, curves."""

from experiments.tables import paper, pictures, statistics
from experiments.tables.fusion_weights import at_start
from experiments.tables.report import Picture, Section
from experiments.tables.runs import by_epoch

DATASET = "cifar10"  # of the paper's Table VI
FAILS = 60  # convolutions: the depth at which the paper's plain network fails
PLACES = ("dataset", "depth", "layout")
"""What the networks of one section have in common."""

MIXED = f"""\
Where only some runs of a row have *begun* to learn, its means are of those, and it is not compared:
a mean of all would describe neither. A run has begun whose accuracy is {statistics.CHANCES} times
chance's; the interval of their share is the exact one (95 %)."""


def weights(runs):
    """The weights of every labelled run of S1, at the start and as learned, beside the paper's."""
    for section, inside in runs[runs["method"] == "S1"].groupby("section", sort=False):
        config, shape = inside["config"].iloc[0], tuple(inside["image_shape"].iloc[0])
        start = at_start(config, 2, inside["seed"].tolist(), shape).tolist()
        branches = [str(place) for place in range(1, len(start[0]) + 1)]
        printed = paper.CELLS["6"].get(str(config.model.depth), {})
        named = {}
        if printed.get("branches") == len(branches):
            named[f"paper ({DATASET})"] = [printed[branch] for branch in branches]
        for seed, drawn, learned in zip(inside["seed"], start, inside["weights"], strict=True):
            named |= {f"seed {seed}, at the start": drawn, f"seed {seed}, learned": learned}
        rows = [{"row": name, **dict(zip(branches, named[name], strict=True))} for name in named]
        yield Section(f"Weights of S1, shallow to deep: {section}", rows, "weights", form="+z.2f")


def learning_curves(runs, name):
    """Test accuracy by epoch of every labelled run."""
    epochs = by_epoch(runs)
    if not epochs.empty:
        options = {"units": "run", "estimator": None, "alpha": 0.7, "markers": False}
        grid = pictures.lines(epochs, "epoch", "test_accuracy", **options)
        pictures.entitle(grid.figure, "Accuracy by epoch", runs)
        yield Picture(name, "Test accuracy by epoch, a line per run", grid.figure)
