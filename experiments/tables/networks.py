"""Not in the paper: Interflow on networks whose shallow layers have other paths for gradients."""

from experiments.tables import pictures
from experiments.tables.compare import compare
from experiments.tables.presets import grid

TITLE = "Not in the paper: a residual network and a transformer"
SEEDS = (1, 2, 3, 4, 5, 6)
DATASETS = ("cifar10",)
HOLDS_OUT = True
CHOOSE = "networks", (0,)
NOTE = """\
The networks are those of `experiments/tables/backbones.py`: 16 and 4 million operations an image,
where the paper's backbone at width 1/8 has 10. The learning rates are those that did best on
held-out examples with seed 0, some at an end of the three that were tried. The last ten of the
residual network's 20 epochs begin before its learning rate drops. Branches read a block's output as
it is: the transformer's last normalisation, before its own head, is in none, nor in Normal; and its
branches, of equal width, share one layer."""


def recipes(base):
    base = base.replace(width=1.0)
    ways = [{"method": name} for name in ("Normal", "S1", "S3", "DSN", "Concat")]
    ways.append({"method": "S1", "fusion": "attention"})
    resnet = base.replace(
        backbone="experiments.tables.backbones:ResNet",
        backbone_options="width=8",  # an eighth of ResNet-18's
        taps=tuple(f"stage{stage}_block2" for stage in range(1, 5)),
        epochs=20,
    )
    vit = base.replace(
        backbone="experiments.tables.backbones:ViT",
        taps=tuple(f"block{block}" for block in range(1, 5)),
        optimizer="adamw",
        schedule="cosine",
        epochs=60,
    )
    return [
        each.replace(**way)
        for network, rates in ((resnet, (1e-2, 3e-2, 1e-1)), (vit, (1e-3, 3e-3, 1e-2)))
        for each in grid(network, learning_rate=rates)
        for way in ways
    ]


def report(runs):
    places = ("dataset", "backbone")
    sections = list(compare(runs, ("method", "fusion"), places))
    yield from sections
    yield from pictures.differences(sections, runs, "networks")
