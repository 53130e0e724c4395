"""The report on how deep a run needs to be, of a run small enough for seconds."""

import json
import shutil

import jax
import numpy as np
import pytest

import interflow_jax as ij
from experiments import exits, run
from experiments.runs import exits as analysis
from interflow_jax.data import datasets, splits
from interflow_jax.data.preprocessing import normalize
from tests.experiments.conftest import SMALL, folder_in, result_in

FEW = ["--held_out=400", "--timed=64", "--points=5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A geometric S1 whose branches have losses of their own."""
    out = tmp_path_factory.mktemp("runs")
    flags = ["--method=S1", "--fusion=geometric", "--auxiliary_mean=1", "--learning_rate=0.02"]
    flags += ["--batch_size=16", "--epochs=4"]
    assert run.main([*SMALL, *flags, f"--out={out}"]) == 0
    return folder_in(out, "S1")


@pytest.fixture(scope="module")
def report(folder, finished):
    flags = [f"--run={folder}", f"--baselines={folder_in(finished)}", "--budgets=0.8,1"]
    assert exits.main([*flags, *FEW]) == 0
    return json.loads((folder / "exits.json").read_text())


def test_a_cut_s_figures_are_those_of_the_cut_model(folder, report):
    trained = ij.load_run(folder)
    assert trained.supervised
    dataset = datasets.load("fashion_mini")
    images, labels = dataset.test.read(np.arange(len(dataset.test)))
    images = normalize(trained.preprocessing, images)
    assert report["cuts"][-1]["accuracy"] == pytest.approx(
        json.loads((folder / "result.json").read_text())["test_accuracy"]
    )
    for branches, row in enumerate(report["cuts"], start=1):
        model, variables = ij.truncate(trained.model, trained.variables, branches)
        prediction = jax.jit(model.apply)(variables, images)
        hits = 100 * np.mean(np.asarray(prediction.logits).argmax(-1) == labels)
        assert row["accuracy"] == pytest.approx(hits, abs=0.11)  # an example may round otherwise
        assert row["parameters"] == sum(x.size for x in jax.tree.leaves(variables["params"]))
    recorded = json.loads((folder / "result.json").read_text())["branch_accuracy"]
    assert [row["alone"] for row in report["cuts"]] == pytest.approx(recorded)
    for figure in ("parameters", "operations"):
        figures = [row[figure] for row in report["cuts"]]
        assert figures == sorted(set(figures))


def test_operations_of_a_stride_vgg_by_hand(report):
    """28x28x1 images at width 1/16, 3 of 5 convolutions: 4 and 4 channels, then 8 of stride 2."""
    convolutions = 2 * 9 * (28 * 28 * (1 * 4 + 4 * 4) + 14 * 14 * 4 * 8)
    assert report["cuts"][0]["operations"] == convolutions + 2 * 8 * 10


def test_budgets_are_kept_and_their_figures_are_real(finished, report):
    whole = report["cuts"][-1]
    eight_tenths, all_of_it, points = report["budgets"]
    policy = report["policy"]
    assert all_of_it["operations"] <= whole["operations"]
    # Kept on held-out images; on the test's within their noise.
    assert eight_tenths["operations"] <= 0.85 * whole["operations"]
    assert points["budget"] == "5 points of accuracy"
    for row in report["budgets"]:
        mean = np.dot(row["exits"], [cut["operations"] for cut in report["cuts"]])
        assert row["operations"] == pytest.approx(mean)
        assert row["images_per_second"] > 0
    curve = [point["operations"] for point in report["curve"]]
    assert curve == sorted(curve)
    assert curve[-1] == all_of_it["operations"]
    assert policy["held_out_accuracy"][policy["fusion"]] == max(
        policy["held_out_accuracy"].values()
    )
    assert policy["ranking"][policy["measure"]] == max(policy["ranking"].values()) > 0.5
    (plain,) = report["baselines"]
    assert plain["accuracy"] == result_in(finished)["test_accuracy"]
    assert plain["name"] == "S3, depth 5, width 0.0625"


def test_the_exits_of_the_report_are_those_that_really_run(folder, report):
    trained = ij.load_run(folder)
    dataset = datasets.load("fashion_mini")
    test = analysis.predict(trained, dataset.test)
    held = analysis.predict(trained, analysis.held_out(trained, dataset, 400))
    (fit, _), policy = held.halves(), report["policy"]
    refit = {}
    if policy["fusion"] != "own":
        refit = {"refit": (fit.branch_logits, fit.labels), "kind": policy["fusion"]}
    for row in report["budgets"]:
        early = ij.EarlyExit(
            trained.model,
            trained.variables,
            row["thresholds"],
            measure=policy["measure"],
            temperatures=policy["temperatures"],
            **refit,
        )
        left = early(np.asarray(normalize(trained.preprocessing, test.images)))
        shares = np.bincount(left.exits, minlength=4)[1:] / len(left.exits)
        np.testing.assert_allclose(shares, row["exits"], atol=0.003)
        hits = 100 * np.mean(left.logits.argmax(-1) == test.labels)
        assert hits == pytest.approx(row["accuracy"], abs=0.3)


def test_held_out_images_are_none_that_trained(folder):
    trained = ij.load_run(folder)
    train = datasets.load("fashion_mini").train
    order = splits.take(train, len(train) - 1).indices
    held = analysis.held_out(trained, datasets.load("fashion_mini"), 10_000)
    assert not set(held.indices) & set(order[:256])
    assert len(held) == len(train) - 256


def test_the_page_has_the_figures_and_its_pictures(folder, report):
    text = (folder / "exits.md").read_text()
    assert report["command"] in text
    for row in report["cuts"]:
        assert f"{row['parameters']:,}" in text
        assert f"| {row['refit_accuracy']:.2f} |" in text
    for name in ("exits-depth.png", "exits-budget.png"):
        assert f"({name})" in text
        assert (folder / name).stat().st_size > 10_000


def test_leaving_out_a_branch_of_no_weight_costs_nothing(folder):
    trained = ij.load_run(folder)
    test = analysis.predict(trained, datasets.load("fashion_mini").test)
    trained.model = trained.model.clone(fusion=ij.Fusion("fixed", (0.0, 0.0, 1.0)))
    trained.variables["params"].pop("fusion")
    costs = analysis.leaving_out(trained, "own", test, test)
    assert costs[:2] == [0, 0]
    assert costs[2] > 0


def test_wrong_input_is_answered_in_a_line_before_any_work(folder, tmp_path, capsys, monkeypatch):
    bare, plain = tmp_path / "bare", tmp_path / "plain"
    shutil.copytree(folder, plain)
    result = json.loads((plain / "result.json").read_text())
    (plain / "result.json").write_text(json.dumps(result | {"branches": [5]}))
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("checkpoints"))
    monkeypatch.setattr(analysis, "predict", None)
    for flags, message in (
        ([f"--run={tmp_path}"], "holds no result.json: give the folder of a finished run"),
        ([f"--run={bare}"], "the last checkpoint in"),
        ([f"--run={plain}"], "has one branch, so there is nothing to cut or to leave"),
        ([f"--run={folder}", "--budgets=0.1"], "--budgets=0.1: choose shares from 0."),
        ([f"--run={folder}", "--budgets=1.5"], "--budgets=1.5: choose shares from 0."),
        ([f"--run={folder}", "--points=-1"], "--points=-1: choose 0 to 100"),
        ([f"--run={folder}", "--timed=1"], "--timed=1: choose 2 or more, and 64 or more"),
        ([f"--run={folder}", f"--baselines={tmp_path}"], "holds no result.json"),
    ):
        assert exits.main([*flags]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.err.count("\n") == 1
        assert not said.out


def test_a_run_on_all_images_has_none_to_choose_with(folder):
    trained = ij.load_run(folder)
    trained.result["train_size"] = 6000
    with pytest.raises(ValueError, match=r"on all 6,000 training examples; .* --train_size"):
        analysis.held_out(trained, datasets.load("fashion_mini"), 10)
