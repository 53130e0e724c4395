"""The benchmark in small: its turns, its figures, its report."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark, contenders
from experiments.contenders import FlaxVGG, Network

SMALL = Network("S1", 13, 1 / 16, (16, 16, 1), 8)


def test_flops_by_hand():
    two_blocks = Network("Normal", 4, 1.0, (8, 8, 3), 2)
    first = 9 * 64 * 3 * 64 * 2  # no gradient of the images: two passes, not three
    second = 9 * 64 * 64 * 64 * 3
    third, fourth = 9 * 16 * 64 * 128 * 3, 9 * 16 * 128 * 128 * 3
    assert two_blocks.flops() == 2 * 2 * (first + second + third + fourth)


def test_flaxs_network_is_ours(key):
    backbone = contenders._build(SMALL).backbone
    plain = FlaxVGG(backbone.taps, backbone.depth, backbone.width)
    images = jnp.zeros((2, *SMALL.image_shape))

    def shapes(module):
        variables = jax.eval_shape(lambda key: module.init(key, images, False), key)
        return sorted(leaf.shape for leaf in jax.tree.leaves(variables))

    assert shapes(plain) == shapes(backbone)
    maps = jax.eval_shape(lambda key: plain.init_with_output(key, images, False)[0], key)
    ours = jax.eval_shape(lambda key: backbone.init_with_output(key, images, False)[0], key)
    assert [m.shape for m in maps] == [m.shape for m in ours]


def test_torchs_network_is_ours(key):
    torch = pytest.importorskip("torch")
    step = contenders.torch_channels_last(SMALL)
    step()
    (model,) = (
        cell.cell_contents
        for cell in step.__closure__
        if isinstance(cell.cell_contents, torch.nn.Module)
    )
    theirs = sum(parameter.numel() for parameter in model.parameters())
    variables = jax.eval_shape(
        lambda key: contenders._build(SMALL).init(key, jnp.zeros((2, 16, 16, 1)), train=False), key
    )
    assert theirs == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def of_turns(**seconds):
    return {
        "network": SMALL._asdict(),
        "contenders": {name: {"step_seconds": times} for name, times in seconds.items()},
    }


def test_ratios_are_of_neighbouring_turns():
    measured = of_turns(ours=[1.0, 2.0, 4.0], flax=[3.0, 4.0, 4.0])
    assert benchmark.ratio(measured, "ours", "flax") == 2.0
    assert benchmark.ratio(measured, "ours", "torch_eager") is None


def test_the_best_of_torch_is_by_the_median():
    measured = of_turns(ours=[1.0], torch_eager=[1.0, 9.0, 9.0], torch_compiled=[5.0, 5.0, 5.0])
    assert benchmark.best_torch(measured) == "torch_compiled"
    assert benchmark.best_torch(of_turns(ours=[1.0])) is None


def test_an_epoch_is_compared_with_its_steps():
    network = SMALL._replace(batch_size=64)  # 93 steps of fashion_mini's 6,000 images
    measured = {**of_turns(ours=[0.5, 1.0, 1.0], epoch=[93.0, 93.0, 186.0]), "network": {}}
    measured["network"] = network._asdict()
    assert benchmark.epoch_overhead(measured) == 2.0


def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "NETWORKS", {"small": SMALL})
    monkeypatch.setattr(benchmark, "SECONDS_A_TURN", 0.01)
    monkeypatch.setattr(benchmark, "PYTORCH", False)
    assert benchmark.main(["--turns=2", f"--out={tmp_path}"]) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())
    measured = report["networks"]["small"]
    for name in ("ours", "flax", "product"):
        assert len(measured["contenders"][name]["step_seconds"]) == 2
        assert measured["contenders"][name]["peak_bytes"] > 1e7
    speed = 8 / np.median(measured["contenders"]["ours"]["step_seconds"])
    line = f"ours {speed:.0f} images/s"
    assert line in " ".join(capsys.readouterr().out.split())
    assert line in " ".join((tmp_path / "benchmark.md").read_text().split())


def test_a_contender_that_fails_is_said_and_the_others_go_on(monkeypatch):
    impossible = SMALL._replace(method="S1", depth=15)  # no branches by default
    measured = benchmark.measure(impossible, ["ours", "product"], 1)
    assert "depth 15 has no branches" in measured["contenders"]["ours"]["error"]
    assert len(measured["contenders"]["product"]["step_seconds"]) == 1


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--networks=widht1", "choose from width1"), ("--turns=0", "choose a number above 0")],
)
def test_what_does_not_fit_is_named(flag, said, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([flag])
    assert said in capsys.readouterr().err
