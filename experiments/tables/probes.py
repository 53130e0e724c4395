"""Not in the paper: what a linear classifier reads from every layer of a trained network.

The paper says that Interflow makes the middle layers learn more discriminative features (II-A,
III-C). If it does, a classifier of their pooled features is better than one of Normal's; if that is
the gradient's short cut, Detached has no part in it, and DSN and Concat have.
"""

from functools import partial

import jax
import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax

from experiments.sweep.record import PROBES
from experiments.tables import pictures
from experiments.tables.compare import compare, labelled
from experiments.tables.presets import grid
from experiments.tables.report import Picture, Section
from experiments.tables.statistics import Family, spread
from interflow_jax.cli import depths
from interflow_jax.data.preprocessing import normalize
from interflow_jax.data.splits import chunks, read, take
from interflow_jax.model import pool

TITLE = "Not in the paper: what a linear classifier reads from every layer"
SEEDS = (3, 4, 5, 6)  # of the table of controls, whose runs these are
DATASETS = ("cifar10",)
HOLDS_OUT = True
MEASURED = PROBES

FITTED, CHOOSING = 5_000, 2_000  # images: three minutes per run on one core
_PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # of the squared weights, from the most
_MIDDLE = range(7, 13)  # convolutions from the first branch to the one before the last
NOTE = f"""\
After every convolution, multinomial logistic regression (L-BFGS) on the pooled features of
{FITTED:,} images that the network was trained on, with the best of {len(_PENALTIES)} penalties on
{CHOOSING:,} that it was not; accuracy on the test split. The middle is the mean over convolutions
{_MIDDLE[0]} to {_MIDDLE[-1]}. Runs whose checkpoints are gone are not probed."""


def recipes(base):
    return grid(base, learning_rate=(3e-2,), method=("Normal", "S1", "DSN", "Detached", "Concat"))


def measure(run, dataset):
    """The accuracies of a finished run's probes."""
    trained = take(dataset.train, min(FITTED, run.result["train_size"]))
    splits = [trained, depths.unseen(run, dataset, CHOOSING), dataset.test]
    layers, labels = zip(*(_read(run, split) for split in splits), strict=True)
    classes = len(run.class_names)
    return {"accuracies": [probe(each, labels, classes) for each in zip(*layers, strict=True)]}


def _read(run, split):
    """The pooled features after every convolution, [images, channels_i] each, and the labels."""
    backbone = run.model.backbone
    backbone = backbone.clone(taps=tuple(range(1, backbone.taps[-1] + 1)))
    variables = {name: part["backbone"] for name, part in run.variables.items()}

    @jax.jit
    def pooled(images):
        images = normalize(run.preprocessing, images)
        return tuple(map(pool, backbone.apply(variables, images, train=False)))

    batches = (read(split, indices) for indices in chunks(split))
    parts = [(pooled(images), labels) for images, labels in batches]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def probe(features, labels, classes):
    """The test accuracy in percent of a linear classifier of features.

    Args:
      features, labels: to fit to, to choose the penalty by, and to test: [images, channels], of
        which the first say how all are scaled, and [images].
    """
    mean, deviation = features[0].mean(axis=0), features[0].std(axis=0) + 1e-6
    fit, held, test = (np.pad((x - mean) / deviation, ((0, 0), (0, 1))) for x in features)
    for x in (fit, held, test):
        x[:, -1] = 1  # of the bias
    weights, right = np.zeros((fit.shape[1], classes)), []
    for penalty in _PENALTIES:
        loss = partial(_loss, fit, np.eye(classes)[labels[0]], penalty)
        found = minimize(loss, weights.ravel(), jac=True, method="L-BFGS-B")
        weights = found.x.reshape(weights.shape)  # the next one starts there
        pairs = zip((held, test), labels[1:], strict=True)
        right.append([100 * float(np.mean((x @ weights).argmax(1) == y)) for x, y in pairs])
    return max(right, key=lambda pair: pair[0])[1]


def _loss(features, targets, penalty, weights):
    """The mean cross-entropy plus the penalty of all but the biases, and its gradient."""
    weights = weights.reshape(features.shape[1], targets.shape[1])
    penalised = penalty * np.vstack([weights[:-1], np.zeros_like(weights[-1:])])
    logs = log_softmax(features @ weights, axis=1)
    value = -np.sum(targets * logs) / len(features) + np.sum(penalised * weights) / 2
    gradient = features.T @ (np.exp(logs) - targets) / len(features) + penalised
    return value, gradient.ravel()


def report(runs):
    yield from compare(runs)
    probed = labelled(runs).dropna(subset=[PROBES])
    probed = probed.assign(accuracies=probed[PROBES].str["accuracies"])
    for section, inside in probed.groupby("section", sort=False):
        yield _by_layer(section, inside)
    if len(probed):
        yield _picture(probed)


def _by_layer(section, runs):
    middle = runs["accuracies"].map(lambda each: np.mean([each[number - 1] for number in _MIDDLE]))
    family = Family({row: middle[runs["row"] == row] for row in runs["row"].unique()})
    differences = family.to("Normal")
    rows = []
    for row, inside in runs.groupby("row", sort=False):
        after = [spread(values) for values in zip(*inside["accuracies"], strict=True)]
        rows.append(
            {
                "row": row,
                "method": inside["method"].iloc[0],
                "middle": spread(middle[inside.index]),
                "runs": len(inside),
                "difference": differences.get(row),
                **{f"after {number}": each for number, each in enumerate(after, start=1)},
            }
        )
    columns = [name for name in rows[0] if name != "method"]
    note = f"Differences are of the middle, to Normal. {family}"
    return Section(f"{section}: probes", rows, "probes", note, columns=columns)


def _picture(runs):
    long = [
        {"row": row, "section": section, "convolution": number, "accuracy": accuracy}
        for row, section, accuracies in runs[["row", "section", "accuracies"]].to_numpy()
        for number, accuracy in enumerate(accuracies, start=1)
    ]
    grid = pictures.lines(pd.DataFrame(long), "convolution", "accuracy", errorbar="sd")
    grid.set_axis_labels("convolution", "test accuracy of a linear classifier (%)")
    pictures.entitle(grid.figure, "What every layer tells", runs)
    shows = "Test accuracy of a linear classifier of the pooled features, by convolution; bands are"
    return Picture("probes", f"{shows} standard deviations over seeds", grid.figure)
