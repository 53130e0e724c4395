"""Gradients by layer: against gradients and steps written out, and the command in small."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from experiments import gradients
from experiments.sweep import pool
from experiments.tables import gradients as report_of
from interflow_jax.cli import run
from interflow_jax.cli.config import RunConfig
from interflow_jax.data.preprocessing import Preprocessing
from interflow_jax.metrics import cross_entropy


def test_norms_are_those_of_the_kernels_shallow_to_deep():
    model = ij.build("S1", 10, depth=5, width=1 / 16, taps=(3, 5))
    optimizer = ij.make_optimizer(1e-3)
    create = partial(ij.create_state, model, optimizer, image_shape=(8, 8, 1))
    state = jax.jit(create)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    labels = jnp.arange(4)
    of_model = partial(report_of.kernel_gradient_norms, model, auxiliary_loss=0.3)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    norms = jax.jit(of_model)(variables, images, labels)

    def loss_of(kernel):
        backbone = {**state.params["backbone"]}
        backbone["conv2"] = {**backbone["conv2"], "kernel": kernel}
        variables = {
            "params": {**state.params, "backbone": backbone},
            "batch_stats": state.batch_stats,
        }
        prediction = model.apply(variables, images, train=True, mutable=["batch_stats"])[0]
        loss = cross_entropy(prediction.logits, labels).mean()
        return loss + 0.3 * cross_entropy(prediction.branch_logits[:, 0], labels).mean()

    gradient = jax.jit(jax.grad(loss_of))(state.params["backbone"]["conv2"]["kernel"])
    assert norms.shape == (5,)
    assert norms[1] == pytest.approx(np.sqrt(np.sum(gradient**2)), rel=1e-4)


def test_the_loss_is_the_one_that_was_trained(monkeypatch):
    """Of DSN with a mean of its branches' losses that mean alone, which takes the sum's place."""
    config = RunConfig().replace(method="DSN", depth=4, taps=(2, 4), width=1 / 16, train_size=64)
    config, model = config.replace(auxiliary_mean=1.0), config.model.build(10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    plain = Preprocessing((0.0,), (1.0,), False)
    opened = SimpleNamespace(
        model=model, image_shape=(28, 28, 1), variables=variables, preprocessing=plain
    )
    monkeypatch.setattr(ij, "load_run", lambda folder: opened)
    given = []

    def norms(model, variables, images, labels, **losses):
        given.append(losses)
        return jnp.ones(4)

    monkeypatch.setattr(report_of, "kernel_gradient_norms", norms)
    report_of.measure([config])
    assert given[0] == {"auxiliary_loss": 0.0, "auxiliary_mean": 1.0, "distillation": 0.0}


def test_a_relative_step_is_that_of_training(key):
    """Of plain gradient descent: at depth 60 the first is several times the kernel itself."""
    model = ij.build("S1", 10, depth=5, width=1 / 16, taps=(3, 5))
    optimizer = ij.make_optimizer(0.25, momentum=0.0, weight_decay=0.0)
    state = jax.jit(partial(ij.create_state, model, optimizer, image_shape=(8, 8, 1)))(key)
    batch = jax.random.normal(key, (4, 8, 8, 1)), jnp.arange(4)
    after, _ = jax.jit(partial(ij.train_step, model, optimizer))(state, *batch)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    gradient = jax.jit(partial(report_of.kernel_gradient_norms, model))(variables, *batch)
    kernel = report_of.kernel_norms(model, state.params)
    network = {"gradient": gradient, "kernel": kernel, "learning_rate": 0.25}
    step = jax.tree.map(jnp.subtract, after.params, state.params)
    np.testing.assert_allclose(
        report_of.relative_steps(network),
        report_of.kernel_norms(model, step) / kernel,
        rtol=1e-4,
    )


def test_the_command_in_small(tmp_path, capsys, monkeypatch):
    """Its sweep trains here, both seeds at once, not in processes as that of test_reproduce.py."""

    def train(runs, *_):
        both = (each.replace(seed=0, seeds=(0, 1)) for each in runs[::2])
        return [each for each in both if run(each.arguments())]

    monkeypatch.setattr(pool, "work", train)
    arguments = ["--dataset=fashion_mini", "--depths=4", "--methods=Normal,S1", "--taps=4"]
    arguments += ["--width=0.0625", "--train_size=128", "--seeds=0,1", "--epochs=1"]
    arguments += [f"--out={tmp_path}"]
    assert gradients.main(arguments) == 0
    report = json.loads((tmp_path / "gradients.json").read_text())
    networks = report["networks"]
    text = (tmp_path / "gradients.md").read_text()
    assert report["protocol"] in text
    assert "--drop_after=1.0" in text  # a shorter run is the beginning of a longer one
    assert [network["method"] for network in networks] == ["Normal", "S1"]
    for network in networks:
        assert (network["epochs"], network["seeds"]) == ([0, 1], [0, 1])
        gradient, kernel = np.array(network["gradient"]), np.array(network["kernel"])
        assert gradient.shape == kernel.shape == (2, 2, 4)
        assert len(np.unique(gradient)) == len(np.unique(kernel)) == 16
        for first, second in 1e-3 * gradient / kernel:
            # Of two seeds: the geometric mean of the ratios, and t(0.975, 1) = 12.706.
            ratios = np.log([first[0] / first[3], second[0] / second[3]])
            middle, half = ratios.mean(), 12.706205 * abs(ratios[0] - ratios[1]) / 2
            low, high = np.exp([middle - half, middle + half])
            assert f"{(first[0] * second[0]) ** 0.5:.2e} |" in text
            assert f"{np.exp(middle):.2e} ({low:.2e} to {high:.2e}) |" in text
        for first, second in gradient:
            assert f"{(first[0] * second[0]) ** 0.5:.2e} |" in text
    for when in ("at start", "after 1 epoch"):
        assert f"| S1, depth 4, {when} |" in text
    # Times Normal's, of the third of four convolutions in the middle: 1 and 4 times, by hand.
    shown = {"file": "gradients.png", "shows": "steps"}
    half = 12.706205 * np.log(4) / 2
    low, high = np.exp([np.log(2) - half, np.log(2) + half])
    by_hand = [[[1.0, 1.0, 3.0, 1.0]] * 2, [[1.0, 1.0, 3.0, 1.0], [1.0, 1.0, 12.0, 1.0]]]
    for network, norms in zip(networks, by_hand, strict=True):
        network |= {"gradient": [norms] * 2, "kernel": np.ones((2, 2, 4))}
    assert f"| 2.00e+00 ({low:.2e} to {high:.2e}) |" in report_of.text(report, shown)
    assert (tmp_path / "gradients.png").exists()
    capsys.readouterr()
    assert gradients.main([*arguments, "--methods=S99"]) == 2
    assert "S99" in capsys.readouterr().err
    capsys.readouterr()
    (checkpoints,) = tmp_path.glob("gradients/runs/*/fashion_mini/S1/seed0/checkpoints")
    shutil.rmtree(checkpoints)
    assert gradients.main(arguments) == 2
    said = capsys.readouterr().err
    assert (
        f"1 finished run(s) without the parameters that they trained, as {checkpoints.parent}:"
        in said
    )
    assert said.count("\n") == 1
    shutil.rmtree(checkpoints.parent)  # of which the record still has the line
    assert gradients.main(arguments) == 2
    assert "1 finished run(s) without the parameters" in capsys.readouterr().err
