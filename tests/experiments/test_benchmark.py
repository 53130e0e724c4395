"""The benchmark in small: its turns, its figures, its report."""

import contextlib
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.timing import contenders, turns
from experiments.timing import report as timing_report
from experiments.timing.contenders import FlaxVGG, Network, Step
from interflow_jax.cli import stopping

SMALL = Network("S1", 13, 1 / 16, (16, 16, 1), 8)


def test_flops_by_hand():
    two_blocks = Network("Normal", 4, 1.0, (8, 8, 3), 2)
    first = 9 * 64 * 3 * 64 * 2  # no gradient of the images: two passes, not three
    second = 9 * 64 * 64 * 64 * 3
    third, fourth = 9 * 16 * 64 * 128 * 3, 9 * 16 * 128 * 128 * 3
    assert two_blocks.flops() == 2 * 2 * (first + second + third + fourth)


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
    return {
        "network": SMALL._asdict(),
        "flops": SMALL.flops(),
        "contenders": {
            name: {
                "step_seconds": times,
                "batches": 100,
                "compile_seconds": 1.0,
                "peak_bytes": 1e6,
            }
            for name, times in seconds.items()
        },
    }


def test_ratios_are_of_neighbouring_turns():
    measured = of_turns(ours=[1.0, 2.0, 4.0], flax=[3.0, 4.0, 4.0])
    assert timing_report.ratio(measured, "ours", "flax") == 2.0
    assert timing_report.ratio(measured, "ours", "torch_eager") is None


def test_the_best_of_torch_is_by_the_median():
    measured = of_turns(ours=[1.0], torch_eager=[1.0, 9.0, 9.0], torch_compiled=[5.0, 5.0, 5.0])
    assert timing_report.best_torch(measured) == "torch_compiled"
    assert timing_report.best_torch(of_turns(ours=[1.0])) is None


def test_an_epoch_is_compared_with_as_many_steps():
    measured = of_turns(ours=[0.5, 1.0, 1.0], epoch=[100.0, 100.0, 200.0])
    assert timing_report.epoch_overhead(measured) == 2.0


@pytest.mark.parametrize("failed", ["ours", "flax", "torch_eager", "product", "epoch"])
def test_the_report_copes_without(failed):
    names = ("ours", "flax", "torch_eager", "product", "epoch")
    measured = of_turns(**{name: [1.0, 2.0] for name in names if name != failed})
    measured["contenders"][failed] = {"error": "its process ended"}
    measured |= {"description": "small", "taken_by_hypervisor": 0.0}
    lines = dict(line.split(maxsplit=1) for line in timing_report.lines(measured))
    assert lines.pop(failed) == "its process ended"
    assert sorted([failed, *lines]) == sorted(names)
    report = {
        "command": "c",
        "device": "d",
        "versions": {},
        "turns": 2,
        "networks": {"a": measured},
    }
    assert "its process ended" in timing_report.markdown(report)


def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    smaller = Network("Normal", 4, 0.25, (8, 8, 1), 8)
    monkeypatch.setattr(benchmark, "NETWORKS", {"small": smaller})
    monkeypatch.setattr(turns, "SECONDS_PER_TURN", 0.01)
    monkeypatch.setattr(benchmark, "PYTORCH", False)
    flags = ["--turns=2", f"--out={tmp_path}", f"--profile={tmp_path}/traces"]
    assert benchmark.main(flags) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())
    measured = report["networks"]["small"]
    for name in ("ours", "flax", "product"):
        assert len(measured["contenders"][name]["step_seconds"]) == 2
        assert measured["contenders"][name]["peak_bytes"] > 1e7
    speed = 8 / np.median(measured["contenders"]["ours"]["step_seconds"])
    line = f"ours {speed:.0f} images/s"
    text = (tmp_path / "benchmark.md").read_text()
    assert line in " ".join(capsys.readouterr().out.split())
    assert line in " ".join(text.split())
    assert list((tmp_path / "traces" / "small").rglob("*.xplane.pb"))


def test_a_contender_that_fails_is_reported_and_the_others_go_on():
    impossible = SMALL._replace(method="S1", depth=15)  # no branches by default
    measured = turns.measure(
        impossible, {"ours": contenders.ours, "product": contenders.product}, 1
    )
    assert "depth 15 has no branches" in measured["contenders"]["ours"]["error"]
    assert len(measured["contenders"]["product"]["step_seconds"]) == 1


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
    contenders = {"ours": steady, "flax": dies, "product": breaks}
    results = turns.measure(SMALL, contenders, 3)["contenders"]
    assert results["flax"] == {"error": "its process ended"}
    assert results["product"] == {"error": "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"}
    assert len(results["ours"]["step_seconds"]) == 3
    assert results["ours"]["peak_bytes"] > 1e7


def test_an_epoch_says_how_many_batches_it_has(monkeypatch):
    monkeypatch.setattr(stopping, "StopSignals", contextlib.nullcontext)  # not this process's
    handler = signal.getsignal(signal.SIGTERM)
    network = Network("Normal", 4, 1 / 16, (28, 28, 1), 2500)
    assert contenders.epoch(network).batches == 2  # of fashion_mini's 6,000 images
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--networks=widht1", "choose from width1"), ("--turns=0", "choose a number above 0")],
)
def test_what_does_not_fit_is_named(flag, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([flag])
    assert message in capsys.readouterr().err
