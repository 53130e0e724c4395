"""The benchmark in small: its turns, its figures, its report."""

import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from experiments import benchmark
from experiments.timing import contenders, turns
from experiments.timing import report as timing_report
from experiments.timing.contenders import FlaxVGG, Network, Step
from interflow_jax.data import splits

SMALL = Network("S1", 13, 1 / 16, (16, 16, 1), 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flaxs_network_is_ours(key, dtype):
    backbone = SMALL._replace(dtype=dtype).build().backbone
    plain = FlaxVGG(backbone.taps, backbone.depth, backbone.width, backbone.dtype)
    images = jnp.zeros((2, *SMALL.image_shape))

    def shapes(module):
        variables = jax.eval_shape(lambda key: module.init(key, images, False), key)
        return sorted(leaf.shape for leaf in jax.tree.leaves(variables))

    assert shapes(plain) == shapes(backbone)
    maps = jax.eval_shape(lambda key: plain.init_with_output(key, images, False)[0], key)
    ours = jax.eval_shape(lambda key: backbone.init_with_output(key, images, False)[0], key)
    assert [(m.shape, m.dtype) for m in maps] == [(m.shape, dtype) for m in ours]


def test_torchs_network_is_ours(key):
    torch = pytest.importorskip("torch")
    step = contenders.TORCH["torch_channels_last"](SMALL)
    step.take()
    (model,) = (
        cell.cell_contents
        for cell in step.take.__closure__
        if isinstance(cell.cell_contents, torch.nn.Module)
    )
    theirs = sum(parameter.numel() for parameter in model.parameters())
    variables = jax.eval_shape(
        lambda key: SMALL.build().init(key, jnp.zeros((2, 16, 16, 1)), train=False), key
    )
    assert theirs == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def of_turns(**seconds):
    facts = {"compile_seconds": 1.0, "peak_bytes": 1e6}
    contenders = {name: {"step_seconds": times, **facts} for name, times in seconds.items()}
    return {"network": SMALL._asdict(), "description": "small", "contenders": contenders}


def test_ratios_are_of_neighbouring_turns_and_torch_s_best_is_by_the_median():
    measured = of_turns(ours=[1.0, 2.0, 4.0], flax=[3.0, 4.0, 4.0])
    assert timing_report.ratio(measured, "ours", "flax") == 2.0
    assert timing_report.ratio(measured, "ours", "torch_eager") is None
    assert timing_report.best_torch(measured) is None
    measured = of_turns(ours=[1.0], torch_eager=[1.0, 9.0, 9.0], torch_compiled=[5.0, 5.0, 5.0])
    assert timing_report.best_torch(measured) == "torch_compiled"


@pytest.mark.parametrize("failed", ["ours", "flax", "torch_eager", "epoch"])
def test_the_report_copes_without(failed):
    names = ("ours", "flax", "torch_eager", "epoch")
    measured = of_turns(**{name: [1.0, 2.0] for name in names if name != failed})
    measured["contenders"][failed] = {"error": "its process ended"}
    facts = {"command": "c", "device": "d", "versions": {}, "turns": 2}
    text = timing_report.text(facts | {"networks": {"a": measured}})
    assert f"| {failed} | its process ended | - |" in text
    own = text.partition("## small")[2]
    assert own.count("| 5 |") == 3  # images/s of the others
    summary = text.partition("## small")[0]
    gone = {"ours", failed} if failed != "ours" else {*names}
    rate = "-" if failed == "ours" else "5"
    shown = ["-" if name in gone else "1.00 (1.00 to 1.00)" for name in names[1:3]]
    assert f"| small | {rate} | - | {' | '.join(shown)} |" in summary


def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    smaller = Network("Normal", 4, 0.25, (8, 8, 1), 8)
    monkeypatch.setattr(benchmark, "NETWORKS", {"small": smaller})
    monkeypatch.setattr(turns, "SECONDS_PER_TURN", 0.01)
    monkeypatch.setattr(benchmark, "PYTORCH", False)
    flags = ["--turns=2", f"--out={tmp_path}", f"--profile={tmp_path}/traces"]
    assert benchmark.main(flags) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())
    measured = report["networks"]["small"]
    for name in ("ours", "flax"):
        assert len(measured["contenders"][name]["step_seconds"]) == 2
        assert measured["contenders"][name]["peak_bytes"] > 1e7
    speed = 8 / np.median(measured["contenders"]["ours"]["step_seconds"])
    line = f"| ours | {speed:.0f} | 1.00 |"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "benchmark.md").read_text()
    assert list((tmp_path / "traces" / "small").rglob("*.xplane.pb"))


def steady(network):
    return Step(lambda: time.sleep(0.01))


def dies(network):
    """In its second turn: after making, warming up, the step that is counted, and a turn."""
    return _at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))


def breaks(network):
    def out_of_memory():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 1 byte")

    return _at_step(4, out_of_memory)


def _at_step(last, end):
    steps = iter(range(1, last))
    return Step(lambda: None if next(steps, None) else end())


def test_a_contender_that_dies_between_turns_is_reported_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(turns, "SECONDS_PER_TURN", 0.0)
    monkeypatch.setattr(turns, "PAUSE_SECONDS", 0.0)
    results = turns.measure(SMALL, {"ours": steady, "flax": dies, "epoch": breaks}, 3)["contenders"]
    assert results["flax"] == {"error": "its process ended"}
    assert results["epoch"] == {"error": "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"}
    assert len(results["ours"]["step_seconds"]) == 3
    assert results["ours"]["peak_bytes"] > 1e7


def test_an_epoch_is_of_all_batches(monkeypatch):
    sample = ij.data.load("fashion_mini")
    few = sample._replace(train=splits.take(sample.train, 80))
    monkeypatch.setattr(ij.data, "load", lambda *_: few)
    step = contenders.epoch(Network("Normal", 4, 1 / 64, (28, 28, 1), 32))
    assert step.batches == 2  # of 80 images
    step.take()
    step.take()  # whatever number of epochs the turns have


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--networks=widht1", "choose from width1"), ("--turns=0", "choose a number above 0")],
)
def test_what_does_not_fit_is_named(flag, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([flag])
    assert message in capsys.readouterr().err
