"""Not in the paper: does what the table `controls` says last with more images, width, classes?"""

from experiments.tables import pictures
from experiments.tables.compare import compare

TITLE = "Not in the paper: more images, wider networks, other datasets"
SEEDS = tuple(range(8))
DATASETS = ("cifar10", "fashion_mnist", "cifar100")
HOLDS_OUT = True
NOTE = """\
At 3e-2 each, and as the other tables but for what a heading says; 45,000 images are all of
CIFAR-10's but a held-out tenth."""

_FOUR = (
    {"method": "Normal"},
    {"method": "Normal", "depth": 9},
    {"method": "S1"},
    {"method": "Concat"},
)
_DSN, _S3 = {"method": "DSN"}, {"method": "S3"}
_SETTINGS = {  # by dataset: fields, rows, seeds
    "cifar10": (({"train_size": 45_000}, _FOUR, 4), ({"width": 0.25}, _FOUR, 4)),
    "fashion_mnist": (({}, (*_FOUR, _DSN), 8),),
    "cifar100": (({"train_size": 20_000, "epochs": 30}, (*_FOUR, _S3, _DSN), 6),),
}


def recipes(base):
    settings = _SETTINGS.get(base.data.dataset, (({}, _FOUR, None),))
    return [
        base.replace(learning_rate=3e-2, seeds=most and SEEDS[:most], **fields, **row)
        for fields, rows, most in settings
        for row in rows
    ]


def report(runs):
    places = ("dataset", "train_size", "width")
    sections = list(compare(runs, ("method", "depth"), places))
    yield from sections
    yield from compare(
        runs, ("method", "depth"), places, "S1", key="beside_s1", about=", S1 as the control"
    )
    yield from pictures.differences(sections, runs, "settings")
