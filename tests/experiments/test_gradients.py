"""Gradient norms by layer: against gradients written out, and the command in small."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from experiments import gradients
from interflow_jax.training import cross_entropy


@pytest.mark.parametrize("auxiliary_loss", [0.0, 0.3])
def test_norms_are_those_of_the_kernels_shallow_to_deep(auxiliary_loss):
    model = ij.build("S1", 10, depth=5, width=1 / 16, taps=(3, 5))
    optimizer = ij.make_optimizer(1e-3)
    state = ij.create_state(model, optimizer, jax.random.key(0), (8, 8, 1))
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    labels = jnp.arange(4)
    of_model = partial(gradients.kernel_gradient_norms, model, auxiliary_loss=auxiliary_loss)
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
        return loss + auxiliary_loss * cross_entropy(prediction.branch_logits[:, 0], labels).mean()

    gradient = jax.jit(jax.grad(loss_of))(state.params["backbone"]["conv2"]["kernel"])
    assert norms.shape == (5,)
    assert norms[1] == pytest.approx(np.sqrt(np.sum(gradient**2)), rel=1e-4)


def test_the_command_in_small(tmp_path, capsys):
    arguments = ["--dataset=fashion_mini", "--depths=4", "--methods=Normal,S1", "--taps=4"]
    arguments += ["--width=0.0625", "--train_size=128", "--seeds=0,1"]
    arguments += [f"--out={tmp_path}"]
    assert gradients.main(arguments) == 0
    report = json.loads((tmp_path / "gradients.json").read_text())
    networks = report["networks"]
    text = (tmp_path / "gradients.md").read_text()
    assert report["protocol"] in text
    assert [network["method"] for network in networks] == ["Normal", "S1"]
    for network in networks:
        for norms in (network["at_start"], network["after_epoch"]):
            (first, second) = norms
            assert len(first) == len(second) == 4
            assert first != second
            # Of two seeds: the geometric mean of the ratios, and t(0.975, 1) = 12.706.
            ratios = np.log([first[0] / first[3], second[0] / second[3]])
            middle, half = ratios.mean(), 12.706205 * abs(ratios[0] - ratios[1]) / 2
            low, high = np.exp([middle - half, middle + half])
            assert f"{(first[0] * second[0]) ** 0.5:.2e} |" in text
            assert f"{np.exp(middle):.2e} ({low:.2e} to {high:.2e}) |" in text
        assert network["at_start"] != network["after_epoch"]
    # Times Normal's, of the second of two convolutions in the middle: 1 and 4 times, by hand.
    picture = {"file": "gradients.png", "shows": "norms"}
    half = 12.706205 * np.log(4) / 2
    low, high = np.exp([np.log(2) - half, np.log(2) + half])
    by_hand = [[[1.0, 1.0, 3.0, 1.0]] * 2, [[1.0, 1.0, 3.0, 1.0], [1.0, 1.0, 12.0, 1.0]]]
    for network, norms in zip(networks, by_hand, strict=True):
        network |= {"at_start": norms, "after_epoch": norms}
    assert f"| 2.00e+00 ({low:.2e} to {high:.2e}) |" in gradients.text(report, picture)
    assert (tmp_path / "gradients.png").exists()
    capsys.readouterr()
    assert gradients.main([*arguments, "--methods=S99"]) == 2
    assert "S99" in capsys.readouterr().err
    assert gradients.main([*arguments, "--methods=S1", "--name=on another day"]) == 0
    second = (tmp_path / "gradients-on-another-day.md").read_text()
    assert "# Gradients by layer: on another day\n" in second
    assert "(gradients-on-another-day.png)" in second
    records = [*tmp_path.glob("gradients/runs/*"), *tmp_path.glob("gradients-*/runs/*")]
    trained = [len(list(record.glob("*/*/seed*/result.json"))) for record in records]
    assert trained == [4, 2]  # a second record has runs of its own
    assert (tmp_path / "gradients.md").read_text() == text
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
