"""Not in the paper: every branch alone, and each with a fully connected layer of its own."""

from experiments.tables import pictures
from experiments.tables.compare import compare, labelled
from experiments.tables.presets import grid
from experiments.tables.report import Picture, Section
from experiments.tables.runs import by_branch
from experiments.tables.statistics import Family, spread

TITLE = "Not in the paper: branches alone, and each with a fully connected layer of its own"
SEEDS = (0, 1, 2, 3, 4)
DATASETS = ("cifar10", "fashion_mnist")


def recipes(base):
    return grid(base, method=("S1", "S3"), fully_connected=("shared", "separate"))


def report(runs):
    places = ("fully_connected",), ("dataset", "method")
    yield from compare(runs, *places, "shared")
    named = labelled(runs, *places)
    branches = by_branch(named)
    for (section, row), inside in branches.groupby(["section", "row"], sort=False):
        groups = {"all, fused": inside.drop_duplicates("run")["test_accuracy"]}
        groups |= {f"after {after}": of for after, of in inside.groupby("after")["alone"]}
        family = Family(groups)
        differences = family.to("all, fused")
        rows = [
            {"row": name, "last epoch": spread(groups[name]), "difference": differences.get(name)}
            for name in groups
        ]
        note = f"Differences are to the fusion of all, of the last epoch. {family}"
        yield Section(f"Branches alone: {section}, {row}", rows, "branches", note)
    picture = pictures.over_seeds(branches, "after", "alone")
    colors = pictures.colors(branches["row"])
    fusions = branches.groupby(["section", "row"])["test_accuracy"].mean()
    for (section, row), fused in fusions.items():
        picture.axes_dict[section].axhline(fused, color=colors[row], ls="--")
    pictures.entitle(picture.figure, "Branches alone", named)
    shows = "Test accuracy of every branch alone, dashed that of all branches fused; "
    yield Picture("branches", f"{shows}{pictures.BARS}", picture.figure)
