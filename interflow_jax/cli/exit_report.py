"""The report on how deep a run needs to be: Markdown and pictures from exits.json."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from interflow_jax.cli import charts, markdown
from interflow_jax.cli.depths import OWN
from interflow_jax.cli.machine import versions_line


def draw(report: dict[str, Any], folder: Path) -> list[dict[str, str]]:
    """Writes the pictures; returns their files, and what they show in words."""
    name = f"{report['method']} on {report['dataset']}, seed {report['seed']}"
    shows = "Test accuracy of early exits by mean operations and by measured images per second, "
    shows += f"beside cut models and other networks: {name}"
    drawn = {"exits-depth.png": f"Test accuracy by depth: {name}", "exits-budget.png": shows}
    with plt.rc_context(charts.STYLE):
        for file, figure in zip(drawn, (_by_depth(report), _by_budget(report)), strict=True):
            charts.save(figure, folder / file)
    return [{"file": file, "shows": words} for file, words in drawn.items()]


def _by_depth(report: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    cuts = report["cuts"]
    labels = [str(cut["after"]) for cut in cuts]
    refit = f"cut there, {report['policy']['refit']} fusion fitted"
    for column, label, form in (
        ("accuracy", "cut there", "o-"),
        ("refit_accuracy", refit, "s-"),
        ("alone", "branch alone", "kx:"),
    ):
        axes.plot(labels, [cut[column] for cut in cuts], form, label=label)
    axes.set(xlabel="branch after", ylabel="test accuracy (%)")
    axes.legend()
    return figure


def _by_budget(report: dict[str, Any]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    curve = [(point["operations"] / 1e6, point["accuracy"]) for point in report["curve"]]
    left.plot(*zip(*curve, strict=True), color="C0")
    column = "accuracy" if report["policy"]["fusion"] == OWN else "refit_accuracy"
    cuts = [{**cut, "accuracy": cut[column]} for cut in report["cuts"]]
    series = [("early exits", "o", report["budgets"]), ("cut models", "s", cuts)]
    series += [(baseline["name"], "*", [baseline]) for baseline in report["baselines"]]
    for label, marker, rows in series:
        accuracies = [row["accuracy"] for row in rows]
        left.plot([row["operations"] / 1e6 for row in rows], accuracies, marker, label=label)
        right.plot([row["images_per_second"] for row in rows], accuracies, marker, label=label)
    left.set(xlabel="mean operations per image (millions)", ylabel="test accuracy (%)")
    right.set(xlabel="images per second")
    left.legend(fontsize=8)
    return figure


def text(report: dict[str, Any], drawn: list[dict[str, str]]) -> str:
    """The report as Markdown."""
    cuts, policy = report["cuts"], report["policy"]
    whole = cuts[-1]
    total, speed = whole["operations"], whole["images_per_second"]
    fusion = "the model's own" if policy["fusion"] == OWN else f"{policy['fusion']}, fitted"
    trained = report["fusion"] or "the method's fusion"
    if report["auxiliary_mean"]:
        trained += f", {report['auxiliary_mean']:g} x mean of branch losses"
    if report["distillation"]:
        trained += f", {report['distillation']:g} x distillation"
    rows = [
        [
            *(f"after {cut['after']}", cut["alone"], cut["accuracy"], _ahead(cut)),
            cut["refit_accuracy"],
            *(f"{cut['parameters']:,}", f"{cut['operations'] / 1e6:.1f}"),
            *(f"{cut['operations'] / total:.0%}", cut["ms_1"], cut["ms_64"]),
        ]
        for cut in cuts
    ]
    heads = ["branch", "alone", "cut there", "minus the whole", f"{policy['refit']} fitted"]
    heads += ["parameters", "operations (10^6)", "of the whole", "ms, 1 image", "ms, 64 images"]
    lines = [
        f"# How deep it needs to be: {report['method']} on {report['dataset']}\n",
        f"```\n{report['command']}\n```\n",
        f"Seed {report['seed']}, {report['epochs']} epochs, {trained}. Accuracy in percent of "
        f"{report['test_examples']:,} test images. Fusions and",
        f"temperatures are fitted to {report['fit_examples']:,} training images that the run has "
        f"not seen; the measure of",
        f"confidence and the thresholds are chosen on {report['held_out_examples']:,} others of "
        "them.\n",
        f"{report['device']}. {versions_line(report['versions'])}.\n",
        "## Cut after a branch\n",
        *markdown.table(heads, rows),
        "`export --branches` cuts there; with `--alone` the branch alone predicts, and `--refit` "
        "fits a fusion of the model's kind.",
        "± is the 95 % error of pairs (Agresti and Min, 2005).\n",
        "## What leaving a branch out costs\n",
        "Points of accuracy: of the model as it is, and with a fusion fitted to the others.\n",
        *markdown.table(
            ["branch", "as it is", f"{policy['refit']} fitted"],
            [[f"after {cut['after']}", cut["left_out"], cut["refit_left_out"]] for cut in cuts],
        ),
        "## Leave early\n",
        f"Exits predict by {fusion} fusion; confidence: {policy['measure']}, at temperatures "
        f"{', '.join(f'{each:.2f}' for each in policy['temperatures'])}. Held-out accuracy, "
        f"mean over exits: {_listed(policy['held_out_accuracy'], '.2f')}.",
        "Pairs of a right and a wrong prediction in which the right one is the surer: "
        f"{_listed(policy['ranking'], '.3f')}. The whole is",
        "the run as it is, without a fitted fusion.\n",
    ]
    head = ["budget", "accuracy", "minus the whole", "on held-out images", "operations"]
    head += ["images/s", "times the whole's"]
    head += [f"leave after {cut['after']}" for cut in cuts]
    rows = [
        [
            row["budget"] + ": the whole is no worse, and faster" * row["whole_is_better"],
            *(row["accuracy"], _ahead(row), _ahead(row, "held_out_")),
            f"{row['operations'] / total:.0%}",
            *(f"{row['images_per_second']:,.0f}", row["images_per_second"] / speed),
            *(f"{share:.0%}" for share in row["exits"]),
        ]
        for row in report["budgets"]
    ]
    lines += markdown.table(head, rows)
    as_models = [{**cut, "name": f"cut after {cut['after']}"} for cut in cuts]
    lines += [
        "Beside them, models that run as a whole in batches of 64:\n",
        *markdown.table(
            ["", "accuracy", "parameters", "operations", "images/s", "times the whole's"],
            [
                [
                    *(row["name"], row["accuracy"], f"{row['parameters']:,}"),
                    f"{row['operations'] / total:.0%}",
                    *(f"{row['images_per_second']:,.0f}", row["images_per_second"] / speed),
                ]
                for row in [*as_models, *report["baselines"]]
            ],
        ),
        *(f"![{picture['shows']}]({picture['file']})\n" for picture in drawn),
    ]
    return "\n".join(lines)


def _ahead(row: dict[str, Any], prefix: str = "") -> str:
    """Points by which a row is ahead of the whole model, and their error."""
    return f"{row[f'{prefix}minus_whole']:+.2f} ± {row[f'{prefix}minus_whole_error']:.2f}"


def _listed(figures: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in figures.items())
