"""Finished runs as one frame, and those of a table found in it by what they compute."""

import json
import time
from pathlib import Path

import pytest

from experiments.tables.runs import by_branch, load, match
from interflow_jax.cli.config import RunConfig
from tests.experiments.tables.invented import line, record

RESULTS = Path(__file__).parents[3] / "results"
RUN = RunConfig().replace(method="S1", dataset="cifar10")


def test_all_committed_runs_load_in_about_a_second():
    start = time.process_time()
    runs = load(RESULTS)
    assert time.process_time() - start < 3
    lines = [json.loads(each) for each in (RESULTS / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == len(lines) >= 496
    by_name = runs.set_index("run")
    for each in lines:
        run = by_name.loc[each["run"]]
        assert run["test_accuracy"] == each["test_accuracy"]
        assert run["learning_rate"] == each.get("learning_rate", 1e-3)  # older than the field
        count = min(10, -(-each["history"][-1]["epoch"] // 2))
        late = [epoch["test_accuracy"] for epoch in each["history"]][-count:]
        assert run["late_accuracy"] == pytest.approx(sum(late) / len(late))
        assert run["fully_connected"] == each.get(
            "fully_connected", each.get("fc")
        )  # its older name


def test_every_committed_run_is_found_by_its_configuration_alone():
    """Taps and epochs as the method and the dataset have them, whatever the name of its folder."""
    from interflow_jax.cli.config import recorded

    lines = [json.loads(each) for each in (RESULTS / "runs.jsonl").read_text().splitlines()]
    configs = [recorded(each).replace(out="elsewhere", data_dir="/data") for each in lines]
    assert match(load(RESULTS), configs)["run"].tolist() == [each["run"] for each in lines]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, True),
        ({"taps": (7, 9, 11, 13), "epochs": 100, "train_size": 50_000}, True),
        ({"seed": 1}, False),
        ({"train_size": 45_000}, False),
        ({"momentum": 0.9}, False),
        ({"taps": (7, 13)}, False),
    ],
)
def test_a_run_is_found_by_what_it_computes(tmp_path, asked, found):
    record(tmp_path, [RUN], lambda config: {"accuracy": 50.0, "train_size": 50_000})
    matched = match(load(tmp_path), [RUN.replace(seed=5), RUN.replace(**asked)])
    assert matched["run"].notna().tolist() == [False, found]
    assert matched["test_accuracy"].tolist()[1:] == (
        [50.0] if found else [pytest.approx(float("nan"), nan_ok=True)]
    )


def test_a_run_of_another_backbone_of_the_same_name_is_not_found(tmp_path):
    network = RUN.replace(backbone="experiments.tables.backbones:ViT", taps=("block1",))
    record(tmp_path, [network], lambda config: {"accuracy": 50.0})
    assert match(load(tmp_path), [network])["run"].notna().all()
    (tmp_path / "runs.jsonl").unlink()
    record(tmp_path, [network], lambda config: {"accuracy": 50.0, "backbone_sha256": "0" * 64})
    assert not match(load(tmp_path), [network])["run"].notna().any()


def test_a_folder_s_run_takes_the_place_of_its_line(tmp_path):
    given = line(RUN, 50.0) | {"run": "elsewhere/S1/seed0"}
    (tmp_path / "runs.jsonl").write_text(json.dumps(given) + "\n")
    folder = tmp_path / "runs" / "elsewhere" / "S1" / "seed0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(given | {"test_accuracy": 60.0}))
    (folder / "metrics.csv").write_text("epoch,test_accuracy\n1,40.0\n2,60.0\n")
    (run,) = load(tmp_path).to_dict("records")
    assert (run["test_accuracy"], run["late_accuracy"]) == (60.0, 60.0)


def test_only_the_last_ten_epochs_are_late(tmp_path):
    history = [{"epoch": epoch, "test_accuracy": float(epoch)} for epoch in range(1, 31)]
    record(tmp_path, [RUN], lambda config: {"accuracy": 30.0, "history": history})
    assert load(tmp_path)["late_accuracy"].tolist() == [25.5]
    record(tmp_path, [RUN], lambda config: {"accuracy": 30.0, "history": history[4::5]})
    assert load(tmp_path)["late_accuracy"].tolist() == [27.5]  # of epochs 25 and 30


def test_a_result_of_another_version_is_named(tmp_path):
    record(tmp_path, [RUN], lambda config: {"accuracy": 50.0})
    lines = (tmp_path / "runs.jsonl").read_text()
    (tmp_path / "runs.jsonl").write_text(lines.replace('"branch_accuracy"', '"alone"'))
    with pytest.raises(ValueError, match=r"line 1, is not a run \(KeyError\('branch_accuracy'\)\)"):
        load(tmp_path)


def test_branches_by_an_older_definition_are_not_used(tmp_path):
    """Three early runs of S1 with losses of the branches' own have a branch near 0 %."""
    runs = load(RESULTS)
    early = runs[runs["older_branch_accuracy"].eq(True)]
    assert early["learning_rate"].tolist() == [1e-3, 1e-2, 3e-2]
    assert early["branch_accuracy"].isna().all()
    assert len(by_branch(early)) == 0
    with_losses = runs[(runs["auxiliary_mean"] == 1) & (runs["taps"].str.len() == 4)]
    assert with_losses.explode("branch_accuracy")["branch_accuracy"].dropna().min() > 50


def test_machines_are_told_apart_by_letters(tmp_path):
    configs = [RUN.replace(seed=seed) for seed in range(3)]
    record(
        tmp_path,
        configs,
        lambda config: {"accuracy": 1.0, "device": "AB"[config.training.seed % 2]},
    )
    assert match(load(tmp_path), configs)["letter"].tolist() == ["a", "b", "a"]
    assert match(load(tmp_path), configs[::2])["letter"].tolist() == ["", ""]
