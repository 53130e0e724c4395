"""Whether gradients reach the shallow layers: their norms by layer, with and without Interflow.

python -m experiments.gradients
"""

import json
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy import stats

import interflow_jax as ij
from experiments.cli import configuration
from experiments.cli.configuration import HOSTS, Configuration, integers, names
from experiments.page import markdown
from experiments.runs import data
from experiments.runs.files import write_whole
from experiments.sweep import work
from experiments.sweep.planning import Planned, plan
from experiments.sweep.record import Record
from experiments.tables import pictures, presets, statistics
from experiments.tables.report import protocol
from experiments.tables.table import Picture
from interflow_jax.data import batches, splits
from interflow_jax.data.preprocessing import Preprocessing, epoch_keys, initial_key, normalize
from interflow_jax.ops import memory
from interflow_jax.training import make_initializer, mean_losses

BATCHES = 8  # over which a norm is averaged
MOMENTS = {"at_start": "at start", "after_epoch": "after epoch"}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.gradients", *arguments])
    parser = configuration.parser(
        "gradients",
        "Trains networks for an epoch and reports, for every convolution, the norm of the\n"
        "gradient of the loss that it minimises, at initialisation and after the epoch, mean over\n"
        f"up to {BATCHES} batches, by seed: OUT/gradients.md, .json and .png, of runs in\n"
        "OUT/gradients. Finished runs are skipped.",
    )
    add = parser.add_argument
    for flag, parse, default in (
        ("--dataset", str, "cifar10"),
        ("--depths", integers, "13,60,100"),
        ("--methods", names, "Normal,S1"),
        ("--seeds", integers, "0,1,2"),
    ):
        add(flag, type=parse, default=parse(default), help=f"default: {default}")
    about = "but of one epoch (default: cpu)"
    add("--preset", default="cpu", choices=presets.PRESETS, help=about)
    add("--out", default="results", help="folder of the report (default: results)")
    add("--name", help="of a record beside the first: OUT/gradients-NAME.md, ...")
    group = parser.add_argument_group("flags of experiments.run, in place of the preset's values")
    decided = ("method", "dataset", "seed", "seeds", "depth", "epochs", "out", *HOSTS)
    configuration.add_flags(group, decided, presets.DECIDED)
    flags = vars(parser.parse_args(arguments))
    depths, methods, seeds, name = map(flags.pop, ("depths", "methods", "seeds", "name"))
    base = Path(flags.pop("out")) / pictures.stem("gradients", name or "")
    values = {**presets.flags(flags.pop("preset"), flags["dataset"]), **flags, "epochs": 1}

    def body() -> int:
        groups = [
            [
                plan(Configuration(method=method, depth=depth, seed=seed, **values), base / "runs")
                for seed in seeds
            ]
            for depth in depths
            for method in methods
        ]
        runs = [run for group in groups for run in group]
        record = Record(base)
        bare = [run for run in record.finished(runs) if not run.folder.has_checkpoints()]
        if bare:
            raise ValueError(
                f"{len(bare)} finished run(s) without the parameters that they trained, as "
                f"{bare[0].folder.path}: delete {base} to train them anew, or give a --name"
            )
        if work.carry_out("Gradients by layer", runs, record, base):
            return 1
        results = pd.DataFrame([record.result(run) for run in runs])
        report = {
            "command": command,
            "name": name,
            "dataset": flags["dataset"],
            "protocol": protocol([run.flags for run in runs], results),
            "networks": [measure(group) for group in groups],
        }
        write_whole(Path(f"{base}.json"), json.dumps(report, indent=1) + "\n")
        (picture,) = pictures.save(_picture(base.name, report), base.parent)
        write_whole(Path(f"{base}.md"), text(report, picture))
        print(text(report, picture))
        return 0

    return work.exit_status("gradients", command, body)


def measure(group: list[Planned]) -> dict[str, Any]:
    """Norms of finished runs of one epoch that differ by their seeds: a network of the report.

    `at_start` and `after_epoch` are [seeds, convolutions], shallow to deep, means over batches.
    """
    flags = group[0].flags
    trained = [ij.load_run(run.folder.path) for run in group]
    model = trained[0].model
    auxiliary_loss = {**ij.METHODS, **ij.BASELINES}[flags.method].auxiliary_loss
    norms = partial(kernel_gradient_norms, model, auxiliary_loss=auxiliary_loss)
    norms = jax.jit(norms, compiler_options=ij.cpu_compiler_options())
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(1, 1.0))
    initialize = make_initializer(model, optimizer, trained[0].image_shape)
    seeds = [run.flags.seed for run in group]
    figures: dict[str, Any] = {"method": flags.method, "depth": flags.depth, "seeds": seeds}
    figures |= {moment: [] for moment in MOMENTS}
    for run, finished in zip(group, trained, strict=True):
        examples = list(_batches(run.flags, finished.preprocessing))
        start = initialize(initial_key(run.flags.seed))
        before = {"params": start.params, "batch_stats": start.batch_stats}
        for moment, variables in zip(MOMENTS, (before, finished.variables), strict=True):
            mean = np.mean([norms(variables, *batch) for batch in examples], axis=0)
            figures[moment].append(mean.tolist())
        figures["batches"] = len(examples)
    return figures


def kernel_gradient_norms(
    model: Any, variables: dict, images: jax.Array, labels: jax.Array, auxiliary_loss: float = 0.0
) -> jax.Array:
    """The norm of the minimised loss's gradient by every kernel of a StrideVGG, [convolutions]."""

    def loss(params):
        prediction, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return mean_losses(prediction, labels, auxiliary_loss)[0]

    gradients = jax.grad(loss)(variables["params"])["backbone"]
    numbers = range(1, model.backbone.taps[-1] + 1)
    return jnp.stack([jnp.linalg.norm(gradients[f"conv{n}"]["kernel"].ravel()) for n in numbers])


def _batches(
    flags: Configuration, preprocessing: Preprocessing
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """The first training batches of the first epoch, without augmentation."""
    train = data.load(flags.dataset, flags.data_dir, flags.image_size).train
    if flags.train_size is not None:
        train = splits.take(train, flags.train_size)
    order = batches.training_order(epoch_keys(flags.seed, 0), len(train))
    for number in range(min(BATCHES, len(order) // flags.batch_size)):
        images, labels = train.read(order[number * flags.batch_size :][: flags.batch_size])
        yield normalize(preprocessing, jnp.asarray(images)), labels


def _picture(stem: str, report: dict[str, Any]) -> Iterator[Picture]:
    norms = pd.DataFrame(
        [
            {**network, "when": when, "convolution": convolution, "norm": norm}
            for network in report["networks"]
            for moment, when in MOMENTS.items()
            for seed_norms in network[moment]
            for convolution, norm in enumerate(seed_norms, start=1)
        ]
    )
    options = {"style": "when", "col": "depth", "markers": False, "dashes": True}
    options |= {"estimator": stats.gmean, "errorbar": ("pi", 100)}
    grid = pictures.lines(norms, "convolution", "norm", "method", **options)
    grid.set(yscale="log", ylabel="norm of the kernel's gradient").set_titles("depth {col_name}")
    shows = "Gradient norms by convolution, lines are geometric means over seeds, bands their range"
    yield stem, shows, grid.figure


def _factor(ratios: np.ndarray) -> str:
    """The geometric mean of ratios by seed, and its interval if there are several."""
    mean = f"{stats.gmean(ratios):.2e}"
    low, high = np.exp(statistics.interval(np.log(ratios)))
    return f"{mean} ({low:.2e} to {high:.2e})" if len(ratios) > 1 else mean


def text(report: dict[str, Any], picture: dict[str, str]) -> str:
    """The report as Markdown: the first, the middle and the last convolution."""
    networks = report["networks"]
    rows, factors = [], []
    plain = {network["depth"]: network for network in networks if network["method"] == "Normal"}
    for network in networks:
        for moment, when in MOMENTS.items():
            norms = np.array(network[moment])  # [seeds, convolutions]
            places = [0, norms.shape[1] // 2, -1]
            name = f"{network['method']}, depth {network['depth']}, {when}"
            typical = [f"{norm:.2e}" for norm in stats.gmean(norms[:, places])]
            rows.append([name, *typical, _factor(norms[:, 0] / norms[:, -1])])
            if network["method"] != "Normal" and network["depth"] in plain:
                ratios = (norms / np.array(plain[network["depth"]][moment]))[:, places]
                factors.append([name, *map(_factor, ratios.T)])
    title = f": {report['name']}" if report["name"] else ""
    lines = [
        f"# Gradients by layer{title}\n\n```\n{report['command']}\n```\n",
        f"On {report['dataset']}: {report['protocol']}.\n",
        f"Norm of the gradient of the loss by a convolution's kernel, mean over "
        f"{networks[0]['batches']} training",
        f"batches, geometric mean over {len(networks[0]['seeds'])} seed(s), with the 95 % "
        "confidence interval of the ratio's.\n",
        *markdown.table(["", "first", "middle", "last", "first / last"], rows),
    ]
    if factors:
        lines += ["Times Normal's, of paired seeds, with the same intervals:\n"]
        lines += markdown.table(["", "first", "middle", "last"], factors)
    return "\n".join([*lines, f"![{picture['shows']}]({picture['file']})\n"])


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
