"""Gradients by layer of trained networks: measured, as Markdown and as a picture."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

import interflow_jax as ij
from experiments.tables import pictures, statistics
from interflow_jax.cli import data, markdown
from interflow_jax.cli.config import RunConfig
from interflow_jax.data import batches, splits
from interflow_jax.data.preprocessing import Preprocessing, epoch_keys, initial_key, normalize
from interflow_jax.steps import make_initializer, mean_losses

BATCHES = 8  # over which a norm is averaged


def measure(runs: list[RunConfig]) -> dict[str, Any]:
    """Norms of a network's finished runs, by epochs, then seed, as one network of the report.

    `gradient`, means over batches, and `kernel` are [moments, seeds, convolutions], shallow to
    deep. The moments are `epochs`, the first of which is the start.
    """
    config, seeds = runs[0], list(dict.fromkeys(run.training.seed for run in runs))
    opened = [ij.load_run(run.folder()) for run in runs]
    model, shape = opened[0].model, opened[0].image_shape
    norms = jax.jit(
        partial(kernel_gradient_norms, model, **config.losses()),
        compiler_options=ij.cpu_compiler_options(),
    )
    initialize = make_initializer(model, config.make_optimizer(1), shape)
    starts = [initialize(initial_key(seed)) for seed in seeds]
    variables = [{"params": each.params, "batch_stats": each.batch_stats} for each in starts]
    variables += [run.variables for run in opened]
    pairs = zip(runs[: len(seeds)], opened, strict=False)
    examples = [list(_batches(run, each.preprocessing)) for run, each in pairs]
    gradient = [
        np.mean([norms(each, *batch) for batch in examples[number % len(seeds)]], axis=0)
        for number, each in enumerate(variables)
    ]
    kernel = [kernel_norms(model, each["params"]) for each in variables]
    moments = -1, len(seeds), len(kernel[0])
    return {
        "method": config.model.method,
        "depth": config.model.depth,
        "seeds": seeds,
        "epochs": [0, *(run.epochs() for run in runs[:: len(seeds)])],
        "learning_rate": config.training.learning_rate,
        "batches": len(examples[0]),
        "gradient": np.reshape(gradient, moments).tolist(),
        "kernel": np.reshape(kernel, moments).tolist(),
    }


def kernel_gradient_norms(
    model: Any, variables: dict, images: jax.Array, labels: jax.Array, **losses: float
) -> jax.Array:
    """Norms of the minimised loss's gradient for each kernel of a StrideVGG, [convolutions]."""

    def loss(params):
        prediction, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return mean_losses(prediction, labels, **losses)[0]

    return kernel_norms(model, jax.grad(loss)(variables["params"]))


def kernel_norms(model: Any, params: dict) -> jax.Array:
    """The norms of a StrideVGG's kernels, or of a tree of the same form, [convolutions]."""
    layers, numbers = params["backbone"], range(1, model.backbone.taps[-1] + 1)
    return jnp.stack([jnp.linalg.norm(layers[f"conv{n}"]["kernel"].ravel()) for n in numbers])


def relative_steps(network: dict[str, Any]) -> np.ndarray:
    """How far a step without momentum and decay moves a kernel, as a share of the kernel's norm.

    [moments, seeds, convolutions]. BatchNorm makes a gradient orthogonal to its kernel, and its
    norm inversely proportional to the kernel's: gradients' own norms do not compare across layers,
    but this is the tangent of the angle by which the kernel turns.
    """
    norms = (np.array(network[name]) for name in ("gradient", "kernel"))
    return network["learning_rate"] * np.divide(*norms)


def _batches(
    config: RunConfig, preprocessing: Preprocessing
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """The first training batches of the first epoch, without augmentation."""
    given = config.data
    places, size = config.places, given.image_size
    train = data.load(given.dataset, places.data_dir, size, resize=given.resize).train
    if given.train_size is not None:
        train = splits.take(train, given.train_size)
    order = batches.training_order(epoch_keys(config.training.seed, 0), len(train))
    size = config.training.batch_size
    for number in range(min(BATCHES, len(order) // size)):
        images, labels = train.read(order[number * size :][:size])
        yield normalize(preprocessing, jnp.asarray(images)), labels


def _when(epochs: int) -> str:
    return f"after {epochs} epoch{'s' if epochs > 1 else ''}" if epochs else "at start"


def picture(report: dict[str, Any]) -> tuple[Figure, str]:
    """Relative steps by convolution, a panel per depth, and what the picture shows."""
    rows = pd.DataFrame(
        [
            {**network, "when": _when(epochs), "convolution": convolution, "step": step}
            for network in report["networks"]
            for epochs, by_seed in zip(network["epochs"], relative_steps(network), strict=True)
            for steps in by_seed
            for convolution, step in enumerate(steps, start=1)
        ]
    )
    options = {"style": "when", "col": "depth", "markers": False, "dashes": True}
    options |= {"estimator": stats.gmean, "errorbar": ("pi", 100)}
    grid = pictures.lines(rows, "convolution", "step", "method", **options)
    grid.set(yscale="log", ylabel="a step / the kernel's norm").set_titles("depth {col_name}")
    grid.refline(y=1.0, color="0.4")
    shows = "What a step moves a kernel by, as a part of its norm, by convolution; lines are "
    return grid.figure, f"{shows}geometric means over seeds, bands their range"


def _factor(ratios: np.ndarray) -> str:
    """The geometric mean of ratios by seed, and its interval if there are several."""
    mean = f"{stats.gmean(ratios):.2e}"
    low, high = np.exp(statistics.interval(np.log(ratios)))
    return f"{mean} ({low:.2e} to {high:.2e})" if len(ratios) > 1 else mean


def text(report: dict[str, Any], shown: dict[str, str]) -> str:
    """The report as Markdown: the first, the middle and the last convolution."""
    networks = report["networks"]
    steps, factors, norms = [], [], []
    plain = {network["depth"]: network for network in networks if network["method"] == "Normal"}
    for network in networks:
        every, gradients = relative_steps(network), np.array(network["gradient"])
        middle = every.shape[-1] // 2
        for moment, epochs in enumerate(network["epochs"]):
            name = f"{network['method']}, depth {network['depth']}, {_when(epochs)}"
            of_moment = every[moment]  # [seeds, convolutions]
            of_places = of_moment[:, [0, middle, -1]]
            ratio = _factor(of_moment[:, 0] / of_moment[:, -1])
            steps.append([name, *(f"{step:.2e}" for step in stats.gmean(of_places)), ratio])
            of_gradients = stats.gmean(gradients[moment][:, [0, middle, -1]])
            norms.append([name, *(f"{norm:.2e}" for norm in of_gradients)])
            if network["method"] != "Normal" and network["depth"] in plain:
                ratios = of_moment / relative_steps(plain[network["depth"]])[moment]
                factors.append([name, *map(_factor, ratios[:, [0, middle, -1]].T)])
    title = f": {report['name']}" if report["name"] else ""
    places = ["", "first", "middle", "last"]
    lines = [
        f"# Gradients by layer{title}\n\n```\n{report['command']}\n```\n",
        f"On {report['dataset']}: {report['protocol']}.\n",
        "What a step of the first learning rate, without momentum, moves a convolution's kernel "
        "by, as a part of the kernel's norm: above one, the step replaces the kernel. Mean over "
        f"{networks[0]['batches']} training batches, geometric mean over "
        f"{len(networks[0]['seeds'])} seed(s), and the 95 % confidence interval of the ratio.\n",
        *markdown.table([*places, "first / last"], steps),
    ]
    if factors:
        lines += ["Times Normal's, of paired seeds, with the same intervals:\n"]
        lines += markdown.table(places, factors)
    lines += ["Norm of the gradient itself, which BatchNorm scales with one over the kernel's:\n"]
    lines += markdown.table(places, norms)
    return "\n".join([*lines, f"![{shown['shows']}]({shown['file']})\n"])
