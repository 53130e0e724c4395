"""The report on how deep a run needs to be, of a run small enough for seconds."""

import json
import re
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from experiments import exits, explore, run
from interflow_jax.cli import depths, exit_report, exit_timing
from interflow_jax.cli.commands import exits as command
from interflow_jax.cli.depths import Depths, Examples, difference, operations, unseen
from interflow_jax.data import recipes, splits
from interflow_jax.data.preprocessing import normalize
from interflow_jax.vgg import forward_flops
from tests.cli.conftest import SMALL, folder_in, result_in
from tests.cli.page import content, in_a_browser, in_browser, text_of

FEW = ["--held_out=400", "--timed=64", "--points=5"]


@pytest.fixture(scope="module", autouse=True)
def short():
    """One kind of fusion is fitted, exits compiled for one batch size, and calls timed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depths, "KINDS", ("shared",))
        patch.setattr(exit_timing, "SECONDS_PER_TURN", 0.0)
        patch.setattr(exit_timing, "TURNS", 1)
        patch.setitem(ij.EarlyExit.__init__.__kwdefaults__, "batch_sizes", (64,))
        yield


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
    dataset = recipes.load("fashion_mini")
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


def test_operations_of_a_stride_vgg_by_hand_and_by_layout(report):
    """28x28x1 images at width 1/16, 3 of 5 convolutions: 4 and 4 channels, then 8 of stride 2."""
    convolutions = 2 * 9 * (28 * 28 * (1 * 4 + 4 * 4) + 14 * 14 * 4 * 8)
    assert report["cuts"][0]["operations"] == convolutions + 2 * 8 * 10
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for layout in ("spread", "append"):
        model = ij.build("S1", 10, depth=20, width=1 / 8, taps=(10, 20), layout=layout)
        init = partial(model.backbone.init_with_output, train=False)
        maps = jax.eval_shape(init, jax.random.key(0), images)[0]
        expected = forward_flops(model.backbone, (32, 32, 3)) + sum(20 * x.shape[-1] for x in maps)
        assert operations(model, {}, (32, 32, 3)) == expected


def test_a_budget_is_a_share_of_the_whole_model():
    """Where exits compute cut models one after another, not of the sum of these."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(16, name="b")(nn.Dense(8, name="a")(x))

    model = ij.Interflow(ij.Taps(Two(), ("a", "b")), 3, ij.Fusion("shared"))
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    result = {"mean": [0.0], "deviation": [1.0], "class_names": "abc", "image_shape": [8, 8, 1]}
    run = ij.TrainedRun(model, variables, result | {"branches": ["a", "b"], "method": "S1"})
    depths, random = Depths(run), np.random.default_rng(0)
    assert depths.spent[-1] == sum(depths.operations) > depths.operations[-1]
    examples = [
        Examples(
            random.integers(0, 3, 40),
            jnp.asarray(random.normal(size=(40, 2, 3))),
            tuple(jnp.asarray(random.normal(size=(40, channels))) for channels in (8, 16)),
        )
        for _ in range(3)
    ]
    depths.fit, depths.held, depths.test = examples
    budgets = depths.by_fusion()["own"]["budgets"]
    assert budgets[-1]["operations"] <= depths.operations[-1]


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
    assert plain["name"] == "--method=S3 --depth=5 --width=0.0625 --epochs=2"


def test_the_exits_of_the_report_are_those_that_really_run(folder, report):
    trained = ij.load_run(folder)
    dataset, depths = recipes.load("fashion_mini"), Depths(trained)
    depths.predict(dataset, 400)
    images, labels = dataset.test.read(np.arange(len(dataset.test)))
    images = np.asarray(normalize(trained.preprocessing, images))
    policy, fitted = report["policy"], report["policy"]["fusion"] != "own"
    early = ij.EarlyExit(
        trained.model,
        trained.variables,
        report["budgets"][0]["thresholds"],
        measure=policy["measure"],
        temperatures=policy["temperatures"],
        refit=(depths.fit.branch_logits, depths.fit.labels) if fitted else None,
        kind=policy["fusion"] if fitted else None,
    )
    for row in report["budgets"]:
        left = early(images, row["thresholds"])
        shares = np.bincount(left.exits, minlength=4)[1:] / len(left.exits)
        np.testing.assert_allclose(shares, row["exits"], atol=0.003)
        hits = 100 * np.mean(left.logits.argmax(-1) == labels)
        assert hits == pytest.approx(row["accuracy"], abs=0.3)


@pytest.fixture(scope="module")
def page(folder, report):
    assert explore.main([f"--run={folder}", "--held_out=400", "--pictures=5"]) == 0
    return folder / "explore.html"


def test_the_explored_page_has_the_report_s_figures(page, report):
    shows = content(page)
    labels, said, sure = shows["labels"], shows["said"], shows["confidence"]
    for row in [*report["budgets"], *report["curve"]]:
        left = [
            next((k for k, most in enumerate(row["thresholds"]) if each[k] > np.float32(most)), 2)
            for each in sure
        ]
        hits = [answers[k] == label for answers, k, label in zip(said, left, labels, strict=True)]
        assert 100 * np.mean(hits) == row["accuracy"]
        assert np.mean([shows["operations"][k] for k in left]) == pytest.approx(row["operations"])
        np.testing.assert_allclose(np.bincount(left, minlength=3) / len(left), row["exits"])
    assert shows["whole_accuracy"] == report["cuts"][-1]["accuracy"]
    assert shows["whole"] == report["cuts"][-1]["operations"]


@in_a_browser
def test_a_browser_computes_the_report_s_figures(page, report):
    for row in report["budgets"]:
        shown = in_browser(page, f"#{','.join(map(str, row['thresholds']))}")
        for figure in (f"{row['accuracy']:.2f} %", f"({row['operations'] / 1e6:.2f} M)"):
            assert figure in text_of("figures", shown)
        for share in row["exits"]:
            assert f"{100 * share:.1f} %" in text_of("exits", shown)


def test_held_out_images_are_none_that_trained(folder):
    trained = ij.load_run(folder)
    train = recipes.load("fashion_mini").train
    order = splits.take(train, len(train) - 1).indices
    held = unseen(trained, recipes.load("fashion_mini"), 10_000)
    assert not set(held.indices) & set(order[:256])
    assert len(held) == len(train) - 256


def test_every_figure_has_its_error_and_a_plan_that_the_whole_beats_says_so(report):
    whole, text = report["cuts"][-1], exit_report.text(report, [])
    assert whole["minus_whole"] == 0 < whole["minus_whole_error"] < 1
    for row in [*report["cuts"], *report["budgets"]]:
        assert row["minus_whole"] == pytest.approx(row["accuracy"] - whole["accuracy"])
        assert f"| {row['minus_whole']:+.2f} ± {row['minus_whole_error']:.2f} |" in text
    for row in report["budgets"]:
        assert (
            f"{row['held_out_minus_whole']:+.2f} ± {row['held_out_minus_whole_error']:.2f}" in text
        )
        faster = whole["images_per_second"] > row["images_per_second"]
        assert row["whole_is_better"] == (faster and whole["accuracy"] >= row["accuracy"])
        for better in (True, False):
            row["whole_is_better"] = better
            said = f"| {row['budget']}: the whole is no worse, and faster |"
            assert (said in exit_report.text(report, [])) == better


def test_the_error_of_a_difference_covers_it():
    """In 95 of 100 samples, also small ones; and it is that of Wald in large ones."""
    random, covered = np.random.default_rng(0), []
    for count in (20, 200):
        for _ in range(2000):
            ours, theirs = random.random((2, count)) < [[0.85], [0.9]]
            points, error = difference(ours, theirs)
            covered.append(abs(points - -5) <= error)
    assert 0.94 < np.mean(covered) < 0.97
    ours, theirs = np.arange(10_000) % 10 < 8, np.arange(10_000) % 100 < 90
    points = 100 * (ours.astype(int) - theirs)
    expected = points.mean(), 1.96 * points.std() / 100
    assert difference(ours, theirs) == pytest.approx(expected, rel=1e-3)


def test_too_few_held_out_images_choose_nothing(folder, capsys):
    trained, data = ij.load_run(folder), recipes.load("fashion_mini")
    for few, points, enough in ((145, 5, 146), (761, 1, 762), (1529, 0.5, 1530)):
        with pytest.raises(ValueError, match=f"{few:,} held-out .* {points} points .* {enough:,},"):
            unseen(trained, data, few, points)
        assert len(unseen(trained, data, enough, points)) == enough
    trained.result["seen_size"] = 6000
    with pytest.raises(ValueError, match=r"on all 6,000 training examples, .* --train_size=5400 "):
        unseen(trained, data, 10)
    for flags, advice in (
        (["--held_out=20", "--points=0"], "raise --held_out to 146"),
        (["--held_out=1529", "--points=5,0.5"], "raise --held_out to 1,530"),
    ):
        assert exits.main([f"--run={folder}", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "do not tell a loss of" in line
        assert line.endswith(advice)
    trained.result["seen_size"] = 6000 - 200
    with pytest.raises(ValueError, match=r"give --points=3.7 or more, or leave it out$"):
        unseen(trained, data, 400, 1)
    assert len(unseen(trained, data, 400, 3.7)) == 200


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
    model = trained.model.clone(fusion=ij.Fusion("fixed", (0.0, 0.0, 1.0)))
    trained.variables["params"].pop("fusion")
    depths = Depths(ij.TrainedRun(model, trained.variables, trained.result))
    depths.predict(recipes.load("fashion_mini"), 400)
    costs = depths.left_out("own")
    assert costs[:2] == [0, 0]
    assert costs[2] > 0


def test_wrong_input_is_answered_in_a_line_before_any_work(folder, capsys, monkeypatch):
    monkeypatch.setattr(Depths, "predict", None)

    def refused(flags, message):
        assert exits.main([f"--run={folder}", *flags]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert (said.err.count("\n"), said.out) == (1, "")

    for flag in ("--budgets=0.1", "--budgets=1.5"):
        refused([flag], f"{flag}: choose shares from 0.")
    for first in (0.60825, 0.6):  # what the line names must do
        with pytest.raises(ValueError, match="choose shares from") as error:
            command._check(SimpleNamespace(budgets=[0.5]), first)
        least = float(re.findall(r"from ([\d.]+), the first", str(error.value))[0])
        command._check(SimpleNamespace(budgets=[least], points=(), held_out=4, timed=64), first)
    refused(["--points=-1"], "--points=-1: choose 0 to 100")
    single = SimpleNamespace(labels=(5,))
    monkeypatch.setattr("interflow_jax.cli.commands.exits.load_run", lambda *_: single)
    refused([], "has one branch, so there is nothing to cut or to leave")
