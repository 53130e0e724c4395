"""How deep a finished run needs to be: its cuts, and exits for images it is sure of early."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from interflow_jax.cli import exit_report, exit_timing, machine
from interflow_jax.cli.config import recorded
from interflow_jax.cli.depths import (
    COARSEST,
    OWN,
    Depths,
    Exits,
    enough,
    load,
    operations,
    parameters,
)
from interflow_jax.cli.files import writable, write_whole
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.parser import Parser, add_data_dir, add_run, names, numbers
from interflow_jax.config import VGG
from interflow_jax.data import splits
from interflow_jax.data.preprocessing import normalize
from interflow_jax.early_exit import EarlyExit
from interflow_jax.saved_run import HELD_OUT, TrainedRun, load_run

BUDGETS = (0.25, 0.5, 0.75)
POINTS = (0.5, 1.0)


def main(arguments: list[str]) -> int:
    """Runs the command."""
    command = shlex.join(["python", "-m", "interflow_jax", "exits", *arguments])
    flags = _parser().parse_args(arguments)
    run, *baselines = _open(flags)
    depths = Depths(run)
    first, whole = depths.spent[0] / depths.operations[-1], depths.operations[-1]
    flags.budgets = flags.budgets or [share for share in BUDGETS if share >= first]
    _check(flags, first)
    dataset = load(run, flags.data_dir)
    out = Path(flags.run).expanduser()
    writable(out)
    print(f"predicting held-out and {len(dataset.test):,} test images ...", flush=True)
    asked = [] if flags.points is None else flags.points
    depths.predict(dataset, flags.held_out, min([COARSEST, *filter(None, asked)]))
    points = asked or [each for each in POINTS if len(depths.held.labels) >= enough(each)]
    if left_out := [f"{each:g}" for each in POINTS if flags.points is None and each not in points]:
        print(
            f"{len(depths.held.labels):,} images to choose with do not tell a loss of "
            f"{' or '.join(left_out)} points from none: these rows are left out"
        )
    print("choosing fusion, temperatures, confidence and thresholds ...", flush=True)
    exits = Exits(depths)
    budgets = [
        {"budget": f"{100 * share:g}% of operations", **exits.within(share * whole)}
        for share in flags.budgets
    ]
    budgets += [{"budget": f"{each:g} points of accuracy", **exits.losing(each)} for each in points]
    facts = ("method", "dataset", "seed", "fusion", "auxiliary_mean", "distillation")
    report = {
        "command": command,
        **{name: run.result.get(name) for name in facts},
        "epochs": run.result.get("trained_epochs", run.result["epochs"]),
        "fit_examples": len(depths.fit.labels),
        "held_out_examples": len(depths.held.labels),
        "test_examples": len(depths.test.labels),
        "device": machine.device(),
        "versions": machine.versions(),
        "policy": exits.policy,
        "cuts": depths.cuts(exits.policy["refit"]),
        "curve": exits.curve(),
        "budgets": budgets,
        "baselines": list(map(_baseline, baselines)),
    }
    print("timing ...", flush=True)
    count = min(flags.timed, len(dataset.test))
    _measure(depths, baselines, report, splits.read(dataset.test, np.arange(count))[0])
    write_whole(out / "exits.json", json.dumps(report, indent=1) + "\n")
    text = exit_report.text(report, exit_report.draw(report, out))
    write_whole(out / "exits.md", text)
    print(text, flush=True)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "exits",
        "Reports how deep a finished run needs to be, in its folder: exits.md, exits.json and\n"
        "pictures. Every cut of the model: its accuracy, size, operations and time. What leaving\n"
        "a branch out costs. And exits: an image that a branch is sure of goes no deeper, so that\n"
        "the mean image takes a part of the operations. Fusions, temperatures, the measure of\n"
        "confidence and thresholds are chosen on training images that the run has not seen, so\n"
        "the run must have been trained with --train_size.",
        "example:\n  interflow exits --run=runs/cifar10/DSN/seed0 \\\n"
        "    --baselines=runs/shallow/cifar10/Normal/seed0,runs/narrow/cifar10/Normal/seed0\n",
    )
    add = parser.add_argument
    add_run(parser, "folder of a finished run with two or more branches")
    about = "folders of smaller networks, trained plainly on the same images, to compare with"
    add("--baselines", type=names, default=(), help=about)
    about = "shares of the whole model's operations, mean over images"
    about += f" (default: those of {','.join(map(str, BUDGETS))} that the first exit allows)"
    add("--budgets", type=numbers, help=about)
    about = "points of held-out accuracy that may be lost (default: those of "
    about += f"{','.join(map(str, POINTS))} that there are images enough to tell from none)"
    add("--points", type=numbers, help=about)
    about = "at most so many training images that were not trained on, half to fit and half to "
    about += "choose with; for p points, the latter are 1.96^2 (100 - p) / p or more, so that the "
    about += "binomial error of a loss of p is no more than p (95 %%), and never fewer than for "
    about += f"{COARSEST:g} points"
    add("--held_out", type=int, default=HELD_OUT, help=f"{about} (default: {HELD_OUT})")
    about = "test images that are timed (default: 2048)"
    add("--timed", type=int, default=2048, help=about)
    add_data_dir(parser)
    return parser


def _open(flags: Any) -> list[TrainedRun]:
    folders = [flags.run, *flags.baselines]
    runs = [load_run(flags.run, flags.backbone, flags.trust_code)]
    for folder in flags.baselines:
        named = RunFolder(Path(folder).expanduser()).result() or {}
        is_own = named.get("backbone", VGG) != VGG
        runs.append(load_run(folder, flags.backbone if is_own else None, flags.trust_code))
    if len(runs[0].labels) < 2:
        raise ValueError(f"{folders[0]} has one branch, so there is nothing to cut or to leave")
    for folder, run in zip(folders, runs, strict=True):
        for name in ("dataset", "image_size", "train_size"):
            ours, theirs = runs[0].result[name], run.result[name]
            if ours != theirs:
                raise ValueError(
                    f"{folder} has {name} {theirs}, {folders[0]} {ours}: they do not compare"
                )
    return runs


def _check(flags: Any, first: float) -> None:
    for budget in flags.budgets:
        if not first <= budget <= 1:
            raise ValueError(
                f"--budgets={budget:g}: choose shares from {math.ceil(1000 * first) / 1000:g}, the "
                "first exit's, to 1"
            )
    for points in flags.points or ():
        if not 0 <= points <= 100:
            raise ValueError(f"--points={points:g}: choose 0 to 100")
    if flags.held_out < 2 or flags.timed < exit_timing.BATCH_SIZE:
        raise ValueError(
            f"--held_out={flags.held_out} --timed={flags.timed}: choose 2 or more, and "
            f"{exit_timing.BATCH_SIZE} or more"
        )


def _baseline(run: TrainedRun) -> dict[str, Any]:
    """A run to compare with, named by the flags in which it can differ."""
    shared = ("--dataset=", "--train_size=", "--image_size=", "--taps=", "--seed=")
    named = [each for each in recorded(run.result).arguments() if not each.startswith(shared)]
    return {
        "name": " ".join(named),
        "accuracy": run.result["test_accuracy"],
        "parameters": parameters(run.variables),
        "operations": operations(run.model, run.variables, run.image_shape),
    }


def _measure(
    depths: Depths, baselines: list[TrainedRun], report: dict[str, Any], images: np.ndarray
) -> None:
    """Adds times of cuts and baselines, and images per second of budgets."""
    run, policy = depths.run, report["policy"]
    refit, kind = None, None
    if policy["fusion"] != OWN:
        fit = depths.fit
        refit, kind = (fit.branch_logits, fit.labels, fit.features), policy["fusion"]
    images = np.asarray(normalize(run.preprocessing, jnp.asarray(images)))
    early = EarlyExit(
        run.model,
        run.variables,
        [1.0] * (len(depths.models) - 1),
        images[:1],
        measure=policy["measure"],
        temperatures=policy["temperatures"],
        refit=refit,
        kind=kind,
    )
    models = [*depths.models, *((each.model, each.variables) for each in baselines)]
    budgets, whole = report["budgets"], report["cuts"][-1]
    thresholds = [row["thresholds"] for row in budgets]
    times, rates = exit_timing.measure(models, early, thresholds, images)
    for row, figures in zip([*report["cuts"], *report["baselines"]], times, strict=True):
        row |= figures
    for row, rate in zip(budgets, rates, strict=True):
        row["images_per_second"] = rate
        faster = whole["images_per_second"] > rate
        row["whole_is_better"] = faster and whole["accuracy"] >= row["accuracy"]
