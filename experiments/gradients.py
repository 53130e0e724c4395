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
from experiments.cli.configuration import Configuration, integers, names
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
WHEN = {"at_start": "at start", "after_epoch": "after epoch"}


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
    for name, parse, default in (
        ("dataset", str, "cifar10"),
        ("depths", integers, "13,60,100"),
        ("methods", names, "Normal,S1"),
        ("seeds", integers, "0,1,2"),
    ):
        parser.add_argument(
            f"--{name}", type=parse, default=parse(default), help=f"default: {default}"
        )
    parser.add_argument(
        "--preset", default="cpu", choices=presets.PRESETS, help="but of one epoch (default: cpu)"
    )
    parser.add_argument("--out", default="results", help="folder of the report (default: results)")
    parser.add_argument("--name", help="of a record beside the first: OUT/gradients-NAME.md, ...")
    group = parser.add_argument_group("flags of experiments.run, in place of the preset's values")
    decided = ("method", "dataset", "seed", "seeds", "depth", "epochs", "out")
    configuration.add_flags(group, decided, presets.DECIDED)
    flags = vars(parser.parse_args(arguments))
    dataset, depths, methods, seeds = (
        flags.pop(name) for name in ("dataset", "depths", "methods", "seeds")
    )
    name = flags.pop("name")
    base = Path(flags.pop("out")) / pictures.stem("gradients", name or "")
    values = {**presets.flags(flags.pop("preset"), dataset), **flags, "epochs": 1}
    values["dataset"] = dataset

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
            "dataset": dataset,
            "protocol": protocol([run.flags for run in runs], results),
            "networks": [measure(group) for group in groups],
        }
        write_whole(Path(f"{base}.json"), json.dumps(report, indent=1) + "\n")
        drawn = pictures.save(_picture(base.name, report), base.parent)
        write_whole(Path(f"{base}.md"), text(report, drawn[0]))
        print(text(report, drawn[0]))
        return 0

    return work.exit_status("gradients", command, body)


def measure(group: list[Planned]) -> dict[str, Any]:
    """Norms of finished runs of one epoch that differ by their seeds.

    Returns:
      method, depth, seeds, batches (how many), and `at_start` and `after_epoch`: per seed and
      convolution, shallow to deep, the Euclidean norm of the gradient of the batch's mean loss by
      its kernel.
    """
    flags = group[0].flags
    auxiliary_loss = {**ij.METHODS, **ij.BASELINES}[flags.method].auxiliary_loss
    trained = [ij.load_run(run.folder.path) for run in group]
    model = trained[0].model
    norms = jax.jit(
        partial(kernel_gradient_norms, model, auxiliary_loss=auxiliary_loss),
        compiler_options=ij.cpu_compiler_options(),
    )
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(1, 1.0))
    initialize = make_initializer(model, optimizer, trained[0].image_shape)
    figures: dict[str, Any] = {"method": flags.method, "depth": flags.depth}
    figures |= {"seeds": [run.flags.seed for run in group], "at_start": [], "after_epoch": []}
    for run, finished in zip(group, trained, strict=True):
        examples = _batches(run.flags, finished.preprocessing)
        start = initialize(initial_key(run.flags.seed))
        before = {"params": start.params, "batch_stats": start.batch_stats}
        for name, variables in (("at_start", before), ("after_epoch", finished.variables)):
            mean = np.mean([norms(variables, *batch) for batch in examples], axis=0)
            figures[name].append(mean.tolist())
        figures["batches"] = len(examples)
    return figures


def kernel_gradient_norms(
    model: Any,
    variables: dict[str, Any],
    images: jax.Array,
    labels: jax.Array,
    auxiliary_loss: float = 0.0,
) -> jax.Array:
    """The norm of the loss's gradient by every convolution's kernel, [convolutions], float32.

    The loss is the one that training minimises.

    Args:
      model: an `Interflow` over a `StrideVGG`.
      variables: its parameters and BatchNorm statistics.
      images: [batch, height, width, channels], float, normalised.
      labels: [batch], int.
      auxiliary_loss: as in `ij.train_step`.
    """

    def loss_of(params):
        prediction, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return mean_losses(prediction, labels, auxiliary_loss)[0]

    gradients = jax.grad(loss_of)(variables["params"])["backbone"]
    deepest = model.backbone.taps[-1]
    kernels = [gradients[f"conv{number}"]["kernel"] for number in range(1, deepest + 1)]
    return jnp.stack([jnp.linalg.norm(kernel.ravel()) for kernel in kernels])


def _batches(
    flags: Configuration, preprocessing: Preprocessing
) -> list[tuple[jax.Array, np.ndarray]]:
    """The first training batches of the first epoch, without augmentation."""
    train = data.load(flags.dataset, flags.data_dir, flags.image_size).train
    if flags.train_size is not None:
        train = splits.take(train, flags.train_size)
    order = batches.training_order(epoch_keys(flags.seed, 0), len(train))
    count = min(BATCHES, len(order) // flags.batch_size)
    examples = []
    for visited in order[: count * flags.batch_size].reshape(count, flags.batch_size):
        images, labels = train.read(visited)
        examples.append((normalize(preprocessing, jnp.asarray(images)), labels))
    return examples


def _picture(stem: str, report: dict[str, Any]) -> Iterator[Picture]:
    norms = pd.DataFrame(
        [
            {**network, "when": when, "convolution": convolution, "norm": norm}
            for network in report["networks"]
            for key, when in WHEN.items()
            for of_seed in network[key]
            for convolution, norm in enumerate(of_seed, start=1)
        ]
    )
    grid = pictures.lines(
        norms,
        "convolution",
        "norm",
        "method",
        **{"style": "when", "col": "depth", "markers": False, "dashes": True},
        **{"estimator": stats.gmean, "errorbar": ("pi", 100)},
    )
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
    rows, apart = [], []
    plain = {network["depth"]: network for network in networks if network["method"] == "Normal"}
    for network in networks:
        for key, when in WHEN.items():
            norms = np.array(network[key])  # [seeds, convolutions]
            places = [0, norms.shape[1] // 2, -1]
            row = f"{network['method']}, depth {network['depth']}, {when}"
            typical = [f"{norm:.2e}" for norm in stats.gmean(norms[:, places])]
            rows.append([row, *typical, _factor(norms[:, 0] / norms[:, -1])])
            if network["method"] != "Normal" and network["depth"] in plain:
                over = norms[:, places] / np.array(plain[network["depth"]][key])[:, places]
                apart.append([row, *map(_factor, over.T)])
    title = f"Gradients by layer: {report['name']}" if report["name"] else "Gradients by layer"
    lines = [
        f"# {title}\n\n```\n{report['command']}\n```\n",
        f"On {report['dataset']}: {report['protocol']}.\n",
        f"Norm of the gradient of the loss by a convolution's kernel, mean over "
        f"{networks[0]['batches']} training",
        f"batches, geometric mean over {len(networks[0]['seeds'])} seed(s), with the 95 % "
        "confidence interval of the ratio's.\n",
        *markdown.table(["", "first", "middle", "last", "first / last"], rows),
    ]
    if apart:
        lines += ["Times Normal's, of paired seeds, with the same intervals:\n"]
        lines += markdown.table(["", "first", "middle", "last"], apart)
    return "\n".join([*lines, f"![{picture['shows']}]({picture['file']})\n"])


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
