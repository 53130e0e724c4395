"""Whether gradients reach the shallow layers: their norms by layer, with and without Interflow.

python -m experiments.gradients
"""

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import interflow_jax as ij
from experiments.cli import configuration
from experiments.cli.configuration import Configuration
from experiments.page.markdown import table
from experiments.runs import charts, data
from experiments.runs.files import write_whole
from experiments.runs.trained import FinishedRun, load
from experiments.sweep import planning, work
from experiments.tables import presets, statistics
from experiments.tables.presets import PRESETS
from experiments.tables.protocol import protocol
from interflow_jax.data import batches, splits
from interflow_jax.data.preprocessing import epoch_keys, initial_key, normalize
from interflow_jax.ops import memory
from interflow_jax.training import TrainState, make_initializer, mean_losses

BATCHES = 8  # over which a norm is averaged


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.gradients", *arguments])
    parser = configuration.parser(
        "gradients",
        "Trains networks for an epoch and reports, for every convolution, the norm of the\n"
        "gradient of the loss that it minimises, at initialisation and after the epoch, mean over\n"
        f"up to {BATCHES} batches, by seed: OUT/gradients.md, .json and .png. Finished runs are\n"
        "skipped.",
    )
    parser.add_argument("--dataset", default="cifar10", help="default: cifar10")
    for name, parse, default in (
        ("depths", configuration.integers, "13,60,100"),
        ("methods", configuration.names, "Normal,S1"),
        ("seeds", configuration.integers, "0,1,2"),
    ):
        parser.add_argument(
            f"--{name}", type=parse, default=parse(default), help=f"default: {default}"
        )
    parser.add_argument(
        "--preset", default="cpu", choices=PRESETS, help="but of one epoch (default: cpu)"
    )
    parser.add_argument("--out", default="results", help="folder of the report (default: results)")
    group = parser.add_argument_group("flags of experiments.run, in place of the preset's values")
    decided = ("method", "dataset", "seed", "seeds", "depth", "epochs", "out")
    configuration.add_flags(group, decided, presets.DECIDED)
    flags = vars(parser.parse_args(arguments))
    out, dataset, seeds = Path(flags.pop("out")), flags.pop("dataset"), flags.pop("seeds")
    depths, methods = flags.pop("depths"), flags.pop("methods")
    values = {**presets.flags(flags.pop("preset"), dataset), **flags, "epochs": 1}

    def body() -> int:
        groups = [
            [
                planning.plan(
                    Configuration(method=method, dataset=dataset, seed=seed, depth=depth, **values),
                    out / "runs",
                )
                for seed in seeds
            ]
            for depth in depths
            for method in methods
        ]
        runs = [run for group in groups for run in group]
        bare = [run.folder for run in planning.finished(runs) if not run.folder.has_checkpoints()]
        if bare:
            raise ValueError(
                f"{len(bare)} finished run(s) without the parameters that they trained, as "
                f"{bare[0].path}: give another --out, or delete their folders, to train them anew"
            )
        if work.carry_out("Gradients by layer", runs, out):
            return 1
        report = {
            "command": command,
            "dataset": dataset,
            "protocol": protocol([run.flags for run in runs], [*map(_result, runs)]),
            "networks": [measure(group) for group in groups],
        }
        write_whole(out / "gradients.json", json.dumps(report, indent=1) + "\n")
        _draw(report, out / "gradients.png")
        write_whole(out / "gradients.md", markdown(report))
        print(markdown(report))
        return 0

    return work.exit_status("gradients", command, body)


def measure(group: list[planning.Planned]) -> dict[str, Any]:
    """Norms of finished runs of one epoch that differ by their seeds.

    Returns:
      method, depth, seeds, batches (how many), and `at_start` and `after_epoch`: for every seed
      and convolution, shallow to deep, the Euclidean norm of the gradient of the batch's mean loss
      by its kernel.
    """
    flags = group[0].flags
    auxiliary_loss = {**ij.METHODS, **ij.BASELINES}[flags.method].auxiliary_loss
    trained = [load(run.folder.path) for run in group]
    model = trained[0].model
    norms = jax.jit(
        partial(kernel_gradient_norms, model, auxiliary_loss=auxiliary_loss),
        compiler_options=ij.cpu_compiler_options(),
    )
    optimizer = ij.make_optimizer(ij.learning_rate_schedule(1, 1.0))
    said: dict[str, Any] = {"method": flags.method, "depth": flags.depth}
    said |= {"seeds": [run.flags.seed for run in group], "at_start": [], "after_epoch": []}
    shape = tuple(trained[0].result["image_shape"])
    initialize = make_initializer(model, optimizer, shape)
    for planned, finished in zip(group, trained, strict=True):
        batches = _batches(planned.flags, finished)
        start = initialize(initial_key(planned.flags.seed))
        for name, state in (("at_start", start), ("after_epoch", finished.state)):
            found = np.mean([norms(state, *batch) for batch in batches], axis=0)
            said[name].append(found.tolist())
        said["batches"] = len(batches)
    return said


def _result(planned: planning.Planned) -> dict[str, Any]:
    return planned.folder.read_json("result.json")


def kernel_gradient_norms(
    model: Any, state: TrainState, images: jax.Array, labels: jax.Array, auxiliary_loss: float = 0.0
) -> jax.Array:
    """The norm of the loss's gradient by every convolution's kernel, [convolutions], float32.

    The loss is the one that training minimises.

    Args:
      model: an `Interflow` over a `StrideVGG`.
      state: its parameters and BatchNorm statistics are used.
      images: [batch, height, width, channels], float, normalised.
      labels: [batch], int.
      auxiliary_loss: as in `ij.train_step`.
    """

    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        prediction, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return mean_losses(prediction, labels, auxiliary_loss)[0]

    gradients = jax.grad(loss_of)(state.params)["backbone"]
    deepest = model.backbone.taps[-1]
    kernels = [gradients[f"conv{number}"]["kernel"] for number in range(1, deepest + 1)]
    return jnp.stack([jnp.linalg.norm(kernel.ravel()) for kernel in kernels])


def _batches(flags: Configuration, finished: FinishedRun) -> list[tuple[jax.Array, np.ndarray]]:
    """The first training batches of the first epoch, without augmentation."""
    train = data.load(flags.dataset, flags.data_dir, flags.image_size).train
    if flags.train_size is not None:
        train = splits.take(train, flags.train_size)
    order = batches.training_order(epoch_keys(flags.seed, 0), len(train))
    count = min(BATCHES, len(order) // flags.batch_size)
    made = []
    for visited in order[: count * flags.batch_size].reshape(count, flags.batch_size):
        images, labels = train.read(visited)
        made.append((normalize(finished.preprocessing, jnp.asarray(images)), labels))
    return made


def _draw(report: dict[str, Any], file: Path) -> None:
    networks = report["networks"]
    depths = list(dict.fromkeys(network["depth"] for network in networks))
    with plt.rc_context({"axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 120}):
        chart, all_axes = plt.subplots(
            1, len(depths), figsize=(4.6 * len(depths), 3.8), layout="constrained", squeeze=False
        )
        for axes, depth in zip(all_axes[0], depths, strict=True):
            methods = [network for network in networks if network["depth"] == depth]
            for place, network in enumerate(methods):
                for key, style in (("at_start", ":"), ("after_epoch", "-")):
                    norms = np.array(network[key])
                    convolutions = range(1, norms.shape[1] + 1)
                    label = f"{network['method']}, {key.replace('_', ' ')}"
                    lowest, highest = norms.min(axis=0), norms.max(axis=0)
                    axes.fill_between(
                        convolutions, lowest, highest, color=f"C{place}", alpha=0.2, lw=0
                    )
                    axes.plot(convolutions, _typical(norms), f"C{place}{style}", label=label)
            axes.set_yscale("log")
            axes.set(title=f"{depth} convolutions", xlabel="convolution")
            axes.legend(fontsize="x-small")
        all_axes[0][0].set(ylabel="norm of the kernel's gradient")
        charts.save(chart, file)


def _typical(norms: np.ndarray) -> np.ndarray:
    """The geometric mean over seeds: norms of different seeds differ by factors."""
    return np.exp(np.log(norms).mean(axis=0))


def _factor(ratios: np.ndarray) -> str:
    """The geometric mean of ratios by seed, and its interval if there are several."""
    logarithms = np.log(ratios)
    mean = logarithms.mean()
    if len(ratios) < 2:
        return f"{np.exp(mean):.2e}"
    half = statistics.half_interval(logarithms)
    return f"{np.exp(mean):.2e} ({np.exp(mean - half):.2e} to {np.exp(mean + half):.2e})"


def markdown(report: dict[str, Any]) -> str:
    """The report for people: the first, the middle and the last convolution."""
    networks = report["networks"]
    text = [
        "# Gradients by layer",
        "",
        *("```", report["command"], "```"),
        "",
        f"On {report['dataset']}: {report['protocol']}.",
        "",
        "Norm of the gradient of the loss by a convolution's kernel, mean over "
        f"{networks[0]['batches']} training",
        f"batches, geometric mean over {len(networks[0]['seeds'])} seed(s), with the 95 % "
        "confidence interval of the ratio's.",
        "",
    ]
    rows, apart = [], []
    plain = {network["depth"]: network for network in networks if network["method"] == "Normal"}
    for network in networks:
        for key in ("at_start", "after_epoch"):
            norms = np.array(network[key])
            places = [0, norms.shape[1] // 2, -1]
            when = f"depth {network['depth']}, {key.replace('_', ' ')}"
            typical = (f"{norm:.2e}" for norm in _typical(norms)[places])
            ratio = _factor(norms[:, 0] / norms[:, -1])
            rows.append([f"{network['method']}, {when}", *typical, ratio])
            if network["method"] != "Normal" and network["depth"] in plain:
                over = norms[:, places] / np.array(plain[network["depth"]][key])[:, places]
                apart.append([f"{network['method']}, {when}", *map(_factor, over.T)])
    text += table(["", "first", "middle", "last", "first / last"], rows)
    if apart:
        text += ["Times Normal's, of paired seeds, with the same intervals:", ""]
        text += table(["", "first", "middle", "last"], apart)
    return "\n".join(
        [
            *text,
            "![Gradient norms by convolution, lines are geometric means over seeds, bands their "
            "range](gradients.png)",
            "",
        ]
    )


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
