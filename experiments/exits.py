"""How deep a finished run needs to be: every cut of it, and exits for images it is sure of early.

python -m experiments.exits --run=runs/cifar10/DSN/seed0
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import interflow_jax as ij
from experiments.cli import configuration
from experiments.runs import exits, machine
from experiments.runs.exits import OWN, Examples
from experiments.runs.files import writable, write_whole
from experiments.runs.policy import HELD_OUT, Thresholds, choose
from experiments.tables import exits_of_run as page
from experiments.tables import pictures
from experiments.timing import exits as timing
from interflow_jax.data.preprocessing import normalize
from interflow_jax.ops import memory

BUDGETS = (0.25, 0.5, 0.75)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.exits", *arguments])
    flags = _parser().parse_args(arguments)
    try:
        run, *baselines = _open([flags.run, *flags.baselines])
        cuts = [ij.truncate(run.model, run.variables, k, _image(run)) for k in _branches(run)]
        operations = [exits.operations(cut, run.image_shape) for cut in cuts]
        first, whole = operations[0] / operations[-1], operations[-1]
        flags.budgets = flags.budgets or [share for share in BUDGETS if share >= first]
        _check(flags, first)
        dataset = exits.load(run, flags.data_dir)
        split = exits.held_out(run, dataset, flags.held_out)
        writable(Path(flags.run))
        _say(f"predicting {len(split):,} held-out and {len(dataset.test):,} test images")
        fit, held = exits.predict(run, split).halves()
        test = exits.predict(run, dataset.test)
        _say("choosing fusion, temperatures, confidence and thresholds on held-out images")
        policy = choose(run, fit, held)
        up_to = exits.up_to_exits(run.model, operations)
        thresholds = Thresholds(run, policy, up_to, fit, held, test)
        budgets = [
            {"budget": f"{share:.0%} of operations", **thresholds.within(share * whole)}
            for share in flags.budgets
        ]
        budgets += [
            {"budget": f"{points:g} points of accuracy", **thresholds.losing(points)}
            for points in flags.points
        ]
        facts = ("method", "dataset", "seed", "epochs", "fusion", "auxiliary_mean")
        report = {
            "command": command,
            **{name: run.result.get(name) for name in facts},
            "fit_examples": len(fit.labels),
            "held_out_examples": len(held.labels),
            "test_examples": len(test.labels),
            "device": machine.device(),
            "versions": machine.versions(),
            "policy": vars(policy),
            "cuts": exits.cuts(run, cuts, policy.refit, fit, test),
            "curve": thresholds.curve(),
            "budgets": budgets,
            "baselines": [exits.baseline(each) for each in baselines],
        }
        _say("timing")
        _measure(run, cuts, baselines, report, fit, test.images[: flags.timed])
    except (ValueError, OSError) as error:
        print(f"exits: error: {error}", file=sys.stderr)
        return 2
    out = Path(flags.run)
    write_whole(out / "exits.json", json.dumps(report, indent=1) + "\n")
    drawn = pictures.save(page.charts(report), out)
    write_whole(out / "exits.md", page.text(report, drawn))
    print(page.text(report, drawn))
    return 0


def _say(line: str) -> None:
    print(f"{line} ...", flush=True)


def _parser() -> Any:
    parser = configuration.parser(
        "exits",
        "Reports how deep a finished run needs to be, in its folder: exits.md, exits.json and\n"
        "pictures. Every cut of the model: its accuracy, size, operations and time. What leaving\n"
        "a branch out costs. And exits: an image that a branch is sure of goes no deeper, so that\n"
        "the mean image takes a part of the operations. Fusions, temperatures, the measure of\n"
        "confidence and thresholds are chosen on training images that the run has not seen, so\n"
        "the run must have been trained with --train_size.",
        "example:\n  python -m experiments.exits --run=runs/cifar10/DSN/seed0 \\\n"
        "    --baselines=runs/shallow/cifar10/Normal/seed0,runs/narrow/cifar10/Normal/seed0\n",
    )
    add = parser.add_argument
    add("--run", required=True, help="folder of a finished run with two or more branches")
    add(
        "--baselines",
        type=configuration.names,
        default=(),
        help="folders of smaller networks, trained plainly on the same images, to compare with",
    )
    about = "shares of the whole model's operations, mean over images"
    about += f" (default: those of {','.join(map(str, BUDGETS))} that the first exit allows)"
    add("--budgets", type=configuration.numbers, help=about)
    default = "0.5,1"
    about = f"points of held-out accuracy that may be lost (default: {default})"
    add("--points", type=configuration.numbers, default=default, help=about)
    about = "most training images, not trained on, to fit and to choose with"
    add("--held_out", type=int, default=HELD_OUT, help=f"{about} (default: {HELD_OUT})")
    about = "test images that are timed (default: 2048)"
    add("--timed", type=int, default=2048, help=about)
    add("--data_dir", help="default: $TFDS_DATA_DIR, then ~/tensorflow_datasets")
    return parser


def _open(folders: list[str]) -> list[ij.TrainedRun]:
    runs = [ij.load_run(folder) for folder in folders]
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
                f"--budgets={budget:g}: choose shares from {first:.3f}, the first exit's, to 1"
            )
    for points in flags.points:
        if not 0 <= points <= 100:
            raise ValueError(f"--points={points:g}: choose 0 to 100")
    if flags.held_out < 2 or flags.timed < timing.BATCH_SIZE:
        raise ValueError(
            f"--held_out={flags.held_out} --timed={flags.timed}: choose 2 or more, and "
            f"{timing.BATCH_SIZE} or more"
        )


def _branches(run: ij.TrainedRun) -> range:
    return range(1, len(run.labels) + 1)


def _image(run: ij.TrainedRun) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *run.image_shape), jnp.float32)


def _measure(
    run: ij.TrainedRun,
    cuts: list,
    baselines: list[ij.TrainedRun],
    report: dict[str, Any],
    fit: Examples,
    images: np.ndarray,
) -> None:
    """Adds times per batch of cuts and baselines, and images per second of these and of budgets."""
    images = np.asarray(normalize(run.preprocessing, jnp.asarray(images)))
    policy = report["policy"]
    refit = {}
    if policy["fusion"] != OWN:
        refit = {"refit": (fit.branch_logits, jnp.asarray(fit.labels)), "kind": policy["fusion"]}
    early = ij.EarlyExit(
        run.model,
        run.variables,
        [1.0] * (len(cuts) - 1),
        _image(run),
        measure=policy["measure"],
        temperatures=policy["temperatures"],
        **refit,
    )
    models = [*cuts, *((each.model, each.variables) for each in baselines)]
    rows = [*report["cuts"], *report["baselines"]]
    for row, times in zip(rows, timing.milliseconds(models, images), strict=True):
        row |= times
    thresholds = [row["thresholds"] for row in report["budgets"]]
    rates = timing.images_per_second(models, early, thresholds, images)
    for row, rate in zip([*rows, *report["budgets"]], rates, strict=True):
        row["images_per_second"] = rate


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
