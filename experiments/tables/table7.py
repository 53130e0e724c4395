"""Table VII: S3 ten times."""

from experiments.tables import paper, pictures
from experiments.tables.compare import compare, labelled
from experiments.tables.report import Picture, Section

TITLE = "Table VII: S3 ten times"
SEEDS = tuple(range(10))
DATASETS = ("cifar10",)


def recipes(base):
    return [base.replace(method="S3")]


def report(runs):
    yield from compare(runs, paper=paper.repeated)
    runs = labelled(runs)
    for (section, row), inside in runs.groupby(["section", "row"], sort=False):
        of_paper = inside["method"].iloc[0] == "S3" and paper.repeated(inside["config"].iloc[0])
        printed = paper.CELLS["7"] if of_paper else {}
        ours = dict(zip(map(str, inside["seed"]), inside["test_accuracy"], strict=True))
        if len(inside) > 1:
            ours["variance"] = float(inside["test_accuracy"].var())
        rows = [
            {"row": run, "paper": printed.get(run, {}).get("accuracy"), "ours": value}
            for run, value in ours.items()
        ]
        yield Section(f"Every run of {row} on {section}", rows, "every_run")
    grid = pictures.lines(runs, "seed", "test_accuracy")
    pictures.entitle(grid.figure, "Every run", runs)
    yield Picture("table7", "Test accuracy of every run, by seed", grid.figure)
