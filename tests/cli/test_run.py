"""The main command from end to end, in small."""

import csv
import json
import os
import shutil
import socket
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

import interflow_jax as ij
from experiments import predict, run
from interflow_jax import optimizer, trainer
from interflow_jax.checkpoints import Checkpoints, UnwritableError
from interflow_jax.cli import charts, data, single
from interflow_jax.cli.files import LockedError, locked
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.main import LOCKED
from interflow_jax.cli.stopping import StoppedError, StopSignals
from interflow_jax.cli.training import TrainingRun
from interflow_jax.data import batches, splits
from interflow_jax.data.preprocessing import normalize
from tests.cli.conftest import SMALL, folder_in, result_in

CONTRACT = {
    *("method", "dataset", "seed", "epochs", "depth", "width", "train_size", "test_accuracy"),
    *("branch_accuracy", "branches", "weights", "train_seconds", "images_per_second", "device"),
    *("versions", "command", "finished"),
}


def test_the_result_keeps_the_contract(finished):
    result = result_in(finished)
    assert set(result) >= CONTRACT
    assert (result["method"], result["dataset"], result["seed"]) == ("S3", "fashion_mini", 0)
    assert (result["epochs"], result["depth"], result["width"]) == (2, 5, 0.0625)
    assert (result["train_size"], result["test_examples"]) == (256, 1000)
    assert result["branches"] == [3, 4, 5]
    assert np.shape(result["weights"]) == (3, 10)
    assert len(result["branch_accuracy"]) == 3
    assert result["command"].startswith("python -m interflow_jax run --method=S3")


def test_what_the_end_measures_is_that_of_the_model(finished):
    """On training images that were trained on, and on those that were not, at least 1,000."""
    result, run = result_in(finished), ij.load_run(folder_in(finished))
    rows = csv.DictReader((folder_in(finished) / "metrics.csv").open())
    (_, last) = [float(row["test_accuracy"]) for row in rows]  # of two epochs the last half
    assert result["late_accuracy"] == pytest.approx(last)
    assert (result["train_eval_examples"], result["held_out_examples"]) == (256, 1000)
    train = ij.data.load("fashion_mini").train
    seen, unseen = splits.take(train, 256), splits.take(train, 6000 - 256, after=256)
    for name, split in (("train_eval", seen), ("held_out", splits.take(unseen, 1000))):
        logits, _, labels, _ = run.predict_split(split)
        accuracy = 100 * np.mean(logits.argmax(-1) == labels)
        an_image = 110 / len(split)  # which may round otherwise
        assert result[f"{name}_accuracy"] == pytest.approx(accuracy, abs=an_image)
    assert "recalibrated_accuracy" not in result  # not deep
    weights, params = np.array(result["weights"]), run.variables["params"]
    kernels = [params[f"fully_connected_channels_{n}"]["kernel"] for n in (8, 8, 16)]
    norms = [np.linalg.norm(k * w[None]) for k, w in zip(kernels, weights, strict=True)]
    np.testing.assert_allclose(result["branch_norms"], norms, rtol=1e-5)


@pytest.mark.usefixtures("quick")
def test_a_deep_run_is_measured_with_recalibrated_statistics_too(tmp_path, monkeypatch):
    """Deeper than VGG; here a shallow one passes for it, whose programs are there."""
    assert single.VGG_DEPTH == 13
    monkeypatch.setattr(single, "VGG_DEPTH", 4)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 0
    result, trained = result_in(tmp_path), ij.load_run(folder_in(tmp_path))
    dataset = ij.data.load("fashion_mini")
    images, labels = splits.read(splits.take(dataset.train, 256), np.arange(256))
    batches = np.split(np.asarray(normalize(trained.preprocessing, images)), 4)
    after = ij.recalibrate(trained.model, trained.variables, batches)
    images, labels = splits.read(dataset.test, np.arange(1000))
    apply = jax.jit(partial(trained.model.apply, train=False))
    logits = apply(after, normalize(trained.preprocessing, images)).logits
    accuracy = 100 * np.mean(logits.argmax(-1) == labels)
    assert result["recalibrated_accuracy"] == pytest.approx(accuracy, abs=0.5)


@pytest.mark.usefixtures("quick")
def test_attention_s_weights_are_recorded_reported_predicted_and_exported(
    tmp_path, capsys, default_fusions, monkeypatch
):
    flags = [*SMALL, "--method=S1", "--fusion=attention", "--learning_rate=0.2"]
    assert run.main([*flags, f"--out={tmp_path}"]) == 0
    assert "between images" in capsys.readouterr().out
    folder, result = folder_in(tmp_path, "S1"), result_in(tmp_path, "S1")
    trained, test = ij.load_run(folder), ij.data.load("fashion_mini").test
    images, labels = splits.read(test, np.arange(1000))
    weights = trained.predict(images).weights
    assert weights.shape == (1000, 3, 1)
    weights = np.asarray(weights, np.float64)[..., 0]
    np.testing.assert_allclose(result["weights"], weights.mean(0), rtol=1e-4)
    np.testing.assert_allclose(result["weight_deviation"], weights.std(0), rtol=1e-2, atol=1e-6)
    assert min(result["weight_deviation"]) > 1e-4
    by_class = [weights[labels == label].mean(0) for label in range(10)]
    np.testing.assert_allclose(result["weights_by_class"], np.transpose(by_class), rtol=1e-4)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert float(rows[-1]["weight_deviation/5"]) == result["weight_deviation"][2]
    assert float(rows[-1]["weights_by_class/5/9"]) == result["weights_by_class"][2][9]
    out = tmp_path / "all.csv"
    given = [f"--run={folder}", "--dataset=fashion_mini", f"--out={out}"]
    assert predict.main(given) == 0
    table = list(csv.DictReader(out.open()))
    columns = [[float(row[f"weight after {label}"]) for row in table] for label in (3, 4, 5)]
    np.testing.assert_allclose(np.transpose(columns), weights, atol=1e-5)
    program = ij.to_stablehlo(
        trained.model, trained.variables, trained.preprocessing, trained.image_shape, ("cpu",)
    )
    probabilities, _ = jax.export.deserialize(bytearray(program)).call(images[:64])
    expected = jax.nn.softmax(trained.predict(images[:64]).logits)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    sample = ij.data.load("fashion_mini")
    del trained.result["data"]  # as of a run that is older: of the sample, fewer images will do
    few = sample._replace(test=splits.take(sample.test, 64), train=splits.take(sample.train, 300))
    monkeypatch.setattr("interflow_jax.fusion._FIT_STEPS", 2)
    cut = trained.cut(2, few, refit=True)
    assert (cut.result["cut_fusion"], set(cut.variables["params"]["fusion"])) == (
        "attention",
        {"query", "log_scale", "key_1", "key_2"},
    )
    normal = normalize(trained.preprocessing, images[:64])
    alone, whole = (
        jax.jit(each.model.apply, compiler_options=default_fusions)(each.variables, normal)
        for each in (trained.cut(2, alone=True), trained)
    )
    np.testing.assert_allclose(alone.logits, whole.branch_logits[:, 1])


def test_a_finished_run_is_where_another_begins(finished, tmp_path, capsys, monkeypatch):
    """Its backbone and statistics, and what matches besides: not the weights of other branches."""
    start, begun = folder_in(finished), []

    def untrained(self, trainer, *_):
        begun.append(trainer.init().params)
        return result_in(finished)

    monkeypatch.setattr(single.Runs, "_run", untrained)
    flags = [*SMALL, f"--pretrained={start}"]
    flags = [flag for flag in flags if not flag.startswith(("--method", "--taps"))]
    said, variables = {}, {}
    for method, taps in (("S3", "3,4,5"), ("S1", "3,4,5"), ("DSN", "4,5"), ("Normal", "5")):
        assert run.main([*flags, f"--method={method}", f"--taps={taps}", f"--out={tmp_path}"]) == 0
        said[method] = capsys.readouterr().out.splitlines()[0].removeprefix(f"from {start}: ")
        variables[method] = begun.pop()
    layers = ["fully_connected_channels_8", "fully_connected_channels_16"]
    assert sorted(said["S3"].split("; ")[0].split(", ")) == sorted(["backbone", "fusion", *layers])
    assert said["S3"].endswith("; new: nothing")
    assert said["S1"].endswith("; new: fusion")
    assert said["DSN"].endswith("; new: nothing")
    assert said["Normal"] == f"backbone, {layers[1]}; new: nothing"
    before = ij.load_run(start).variables["params"]
    for params in variables.values():
        for name in params.keys() - {"fusion"}:
            jax.tree.map(np.testing.assert_array_equal, params[name], before[name])
    np.testing.assert_array_equal(variables["S3"]["fusion"]["weights"], before["fusion"]["weights"])
    assert run.main([*flags, "--method=Normal", "--taps=5", "--downsample=last"]) == 2
    assert "has downsample first, this one last; choose the same" in capsys.readouterr().err
    assert run.main([*flags, f"--pretrained={tmp_path}", f"--out={tmp_path / 'none'}"]) == 2
    assert not (tmp_path / "none").exists()


def test_csv_and_events_have_the_same_figures(finished):
    folder = folder_in(finished)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    result = result_in(finished)
    assert float(rows[-1]["test_accuracy"]) == result["test_accuracy"]
    assert [float(rows[-1][f"branch_accuracy/{tap}"]) for tap in (3, 4, 5)] == result[
        "branch_accuracy"
    ]
    assert float(rows[-1]["weights/5/4"]) == result["weights"][2][4]
    (file,) = (folder / "events").iterdir()
    scalars = {}
    for event in read_events(file):
        for value in event.summary.value:
            scalars[event.step, value.tag] = value.simple_value
    names = ij.load_run(folder).class_names
    for row in rows:
        for name, value in row.items():
            if name != "epoch":
                kind, _, rest = name.partition("/")
                if kind == "weights":  # by class, in TensorBoard by its name without spaces
                    tap, _, label = rest.partition("/")
                    name = f"weights/{tap}/{names[int(label)]}".replace(" ", "_")
                figure = scalars[int(row["epoch"]), name]
                np.testing.assert_allclose(figure, float(value), rtol=1e-6)
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], [1e-3, 1e-4])


def test_events_have_the_run_s_options_and_pictures(finished):
    (file,) = (folder_in(finished) / "events").iterdir()
    values = [value for event in read_events(file) for value in event.summary.value]
    images = {value.tag: value.image for value in values if value.HasField("image")}
    drawn = {f"pictures/{file.stem}" for file in (folder_in(finished) / "pictures").iterdir()}
    assert (
        images.keys()
        == drawn
        >= {f"pictures/{name}" for name in ("learning_curves", "branch_accuracy", "fusion_weights")}
    )
    for tag, image in images.items():
        file = folder_in(finished) / f"{tag}.png"
        assert image.encoded_image_string == file.read_bytes()
        with Image.open(file) as picture:
            assert min(picture.size) > 200
            assert picture.convert("L").getextrema() == (0, 255)
    options = [value.metadata.plugin_data for value in values if value.tag.startswith("_hparams_")]
    assert {each.plugin_name for each in options} == {"hparams"}
    for name in (b"learning_rate", b"label_smoothing", b"test_accuracy"):
        assert any(name in each.content for each in options)


def read_events(file):
    """TensorBoard's records: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    content = file.read_bytes()
    position = 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        event = event_pb2.Event()  # pyright: ignore[reportAttributeAccessIssue]
        event.ParseFromString(content[position + 12 : position + 12 + length])
        yield event
        position += 12 + length + 4


def test_a_finished_run_returns_at_once(finished, monkeypatch, capsys):
    monkeypatch.setattr(single, "Trainer", None)
    assert run.main([*SMALL, f"--out={finished}"]) == 0
    accuracy = result_in(finished)["test_accuracy"]
    assert f"{accuracy:.2f}% of 1,000 test images" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_metrics_that_a_kill_left_unwritten_are_written(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    folder = folder_in(tmp_path)
    (folder / "result.json").unlink()
    (folder / "metrics.csv").unlink()
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 0
    expected = (folder_in(finished) / "metrics.csv").read_text()
    assert (folder / "metrics.csv").read_text() == expected


def test_a_command_corrected_before_any_work_may_use_the_folder(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    folder.claim({"batch_size": 1}, {})
    folder.claim({"batch_size": 2}, {})
    assert folder.fact("configuration") == {"batch_size": 2}
    assert run.main([*SMALL, "--train_size=32", f"--out={tmp_path / 'runs'}"]) == 2
    assert "--batch_size=64 is more than the 32 training examples" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_another_configuration_is_refused_with_the_difference(finished, capsys):
    before = (folder_in(finished) / "config.json").read_text()
    assert run.main([*SMALL, "--batch_size=32", f"--out={finished}"]) == 2
    error = capsys.readouterr().err
    assert "batch_size 64 there, 32 asked for" in error
    assert len(error.splitlines()) == 1
    assert (folder_in(finished) / "config.json").read_text() == before


@pytest.mark.usefixtures("quick")
def test_seeds_run_one_after_the_other_and_skip_the_finished(
    finished, tmp_path, capsys, monkeypatch
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    trained = []
    resume = TrainingRun.resume
    monkeypatch.setattr(
        TrainingRun, "resume", lambda self, say: (trained.append(self.seed), resume(self, say))
    )
    assert run.main([*SMALL, "--seeds=1,0,2", f"--out={tmp_path}"]) == 0
    assert trained == [1, 2]
    results = [result_in(tmp_path, seed=seed) for seed in (1, 0, 2)]
    accuracies = [result["test_accuracy"] for result in results]
    assert len({result["fingerprint"] for result in results}) == 3
    expected = f"3 seeds: {np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}%"
    assert expected in capsys.readouterr().out


def test_baselines_train_on_the_losses_of_all_branches_and_predict_from_the_last(tmp_path):
    flags = ["--depth=4", "--taps=2,4", "--width=0.0625", "--train_size=64", "--epochs=1"]
    for method in ("Aux", "DSN"):
        assert run.main([f"--method={method}", *flags, f"--out={tmp_path}"]) == 0
    results = [result_in(tmp_path, method) for method in ("Aux", "DSN")]
    for result in results:
        assert result["weights"] == [0, 1]
        assert result["test_accuracy"] == result["branch_accuracy"][-1]
    # From one start and on the same images, only the weight of the other branch's loss differs.
    assert results[0]["train_loss"] == results[1]["train_loss"]
    assert results[0]["fingerprint"] != results[1]["fingerprint"]


def test_a_resumed_run_reads_no_split_for_its_statistics(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "fits", lambda nbytes: False)
    evaluate = trainer.Trainer.evaluate

    def signalled(self, *arguments):
        raise StoppedError(15)

    monkeypatch.setattr(trainer.Trainer, "evaluate", signalled)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 128 + 15
    monkeypatch.setattr(trainer.Trainer, "evaluate", evaluate)
    monkeypatch.setattr(splits, "channel_statistics", None)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 0
    assert result_in(tmp_path)["mean"] == result_in(finished)["mean"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: allocating 9 bytes\nat x")],
)
@pytest.mark.parametrize("place", ["__init__", "dispatches"])
def test_too_little_memory_is_told_as_such(error, place, tmp_path, monkeypatch, capsys):
    def too_large(*_, **__):
        raise error

    monkeypatch.setattr(trainer.Trainer, place, too_large)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run: stopped: out of memory (")
    assert "smaller --batch_size, --width or --train_size" in line
    assert "delete" not in line


def test_held_out_examples_are_measured(finished):
    result = result_in(finished)
    assert result["validation_examples"] == 25  # a tenth of 256
    assert 0 <= result["validation_accuracy"] <= 100


@pytest.mark.usefixtures("quick")
def test_a_run_begun_before_validation_was_measured_goes_on_without(
    finished, tmp_path, monkeypatch
):
    record, train_epoch = TrainingRun._record, TrainingRun.train_epoch

    def without_validation(self, stop):
        figures = record(self, stop)
        del figures["validation_accuracy"]
        return figures

    def one_epoch(self, *arguments):
        if self.position.epoch == 1:
            raise StoppedError(15)
        train_epoch(self, *arguments)

    with monkeypatch.context() as older:
        older.setattr(TrainingRun, "_record", without_validation)
        older.setattr(TrainingRun, "train_epoch", one_epoch)
        assert run.main([*SMALL, f"--out={tmp_path}"]) == 128 + 15
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 0
    assert result_in(tmp_path)["validation_accuracy"] is None
    assert result_in(tmp_path)["fingerprint"] == result_in(finished)["fingerprint"]


def test_a_folder_that_is_older_than_a_flag_had_its_default(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    config = folder_in(copy) / "config.json"
    facts = json.loads(config.read_text())
    for flag in ("optimizer", "learning_rate", "schedule", "auxiliary_mean"):
        del facts["configuration"][flag]
    config.write_text(json.dumps(facts))
    assert run.main([*SMALL, f"--out={copy}"]) == 0
    assert run.main([*SMALL, "--learning_rate=0.01", f"--out={copy}"]) == 2
    assert "learning_rate 0.001 there, 0.01 asked for" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    finished, tmp_path, monkeypatch, capsys
):
    out = f"--out={tmp_path}"
    with monkeypatch.context() as broken:
        # The first epoch trains as it should; then a rate that no training survives.
        original = optimizer.optax.piecewise_constant_schedule

        def exploding(rate, boundaries):
            schedule = original(rate, boundaries)
            return lambda step: schedule(step) * (1.0 + 1e30 * (step >= 4))

        broken.setattr(optimizer.optax, "piecewise_constant_schedule", exploding)
        assert run.main([*SMALL, out]) == 1
    error = capsys.readouterr().err
    assert "run: stopped: the loss is" in error
    assert "in epoch 2, step " in error
    assert not (folder_in(tmp_path) / "result.json").exists()
    assert run.main([*SMALL, out]) == 0
    assert "after epoch 1, step 0 of 4" in capsys.readouterr().out
    assert result_in(tmp_path)["fingerprint"] == result_in(finished)["fingerprint"]


@pytest.mark.usefixtures("quick")
def test_a_disk_that_is_full_for_a_while_loses_nothing(finished, tmp_path, monkeypatch, capsys):
    out = f"--out={tmp_path}"
    with monkeypatch.context() as full:

        def no_space(*_):
            raise UnwritableError("No space left on device")

        full.setattr(Checkpoints, "save", no_space)
        assert run.main([*SMALL, out]) == 1
    said = capsys.readouterr()
    assert said.out.count("could not save a checkpoint (No space left on device)") == 2
    assert "make room and run the same command again" in said.err
    assert run.main([*SMALL, out]) == 0
    assert result_in(tmp_path)["fingerprint"] == result_in(finished)["fingerprint"]


@pytest.mark.usefixtures("quick")
def test_events_that_a_full_disk_refuses_are_written_later(finished, tmp_path, monkeypatch, capsys):
    write, refused = EventsWriter.write_event, []

    def full_in_the_first_epoch(writer, event):
        if event.step == 1 and not refused:
            refused.append(event)
            raise OSError("No space left on device")
        return write(writer, event)

    monkeypatch.setattr(EventsWriter, "write_event", full_in_the_first_epoch)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 0
    assert "could not write the metrics (No space left on device)" in capsys.readouterr().out
    there, whole = (
        [
            (event.step, value.tag, value.simple_value)
            for file in (folder_in(out) / "events").iterdir()
            for event in read_events(file)
            for value in event.summary.value
            if value.tag != "images_per_second"
        ]
        for out in (tmp_path, finished)
    )
    assert there == whole


def test_a_signal_whose_state_cannot_be_saved_says_so(tmp_path, monkeypatch, capsys):
    def no_space(*_):
        raise UnwritableError("No space left on device")

    def signalled(self, *_):
        raise StoppedError(15)

    monkeypatch.setattr(Checkpoints, "save", no_space)
    monkeypatch.setattr(StopSignals, "check", signalled)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 128 + 15
    said = capsys.readouterr().out
    assert "stopped, but the last state could not be saved" in said
    assert "stopped and saved" not in said


@pytest.mark.usefixtures("quick")
def test_a_run_is_held_until_its_result_is_written(tmp_path, monkeypatch):
    folder, draw = RunFolder(folder_in(tmp_path)), charts.draw

    def beside_another(*arguments):
        with pytest.raises(LockedError), locked(folder.path):
            pass
        with pytest.raises(LockedError):
            folder.claim({}, {})
        return draw(*arguments)

    monkeypatch.setattr(charts, "draw", beside_another)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 0


def test_one_process_at_a_time_trains_in_a_folder(tmp_path, capsys):
    folder = folder_in(tmp_path)
    folder.mkdir(parents=True)
    with locked(folder):
        assert run.main([*SMALL, f"--out={tmp_path}"]) == LOCKED
    said = capsys.readouterr().err
    assert f"process {os.getpid()} on {socket.gethostname()} is training in {folder}" in said
    with locked(folder):
        pass


def test_folders_are_checked_before_a_download(tmp_path, monkeypatch, capsys):
    def download(*_):
        raise AssertionError("downloads first")

    monkeypatch.setattr(data, "prepare", download)
    (tmp_path / "file").write_text("")
    flags = ["--dataset=mnist", f"--data_dir={tmp_path}", f"--out={tmp_path / 'file'}"]
    assert run.main(flags) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_checkpoints_that_cannot_be_read_are_not_thrown_away(finished, tmp_path, capsys):
    folder = folder_in(tmp_path)
    folder.mkdir(parents=True)
    config = json.loads((folder_in(finished) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "checkpoints" / "5").mkdir(parents=True)
    assert run.main([*SMALL, f"--out={tmp_path}"]) == 1
    assert "can be read" in capsys.readouterr().err
    assert (folder / "checkpoints" / "5").exists()
