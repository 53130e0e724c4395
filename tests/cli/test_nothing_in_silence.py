"""What a run says of other data, other checkpoints, other versions, and what never ends it."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from interflow_jax import load_run
from interflow_jax.cli import explore, machine, predict, run, single
from interflow_jax.cli.stopping import StoppedError
from interflow_jax.cli.training import TrainingRun
from interflow_jax.data import from_folder, load
from interflow_jax.data.splits import take
from tests.cli.conftest import SMALL, folder_in, result_in
from tests.cli.test_resume import COMMAND

pytestmark = pytest.mark.usefixtures("quick")


def pictures(root, classes=("cat", "dog"), count=10):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), 90 * label + number).save(root / name / f"{number}.png")
    return root


def of_folder(root, out):
    flags = ["--method=Normal", "--depth=4", "--width=0.0625", "--epochs=1", "--batch_size=8"]
    return [f"--dataset=folder:{root}", *flags, f"--out={out}"]


def test_other_pictures_under_the_same_name_are_no_old_result(tmp_path, capsys):
    out = tmp_path / "runs [v2]"
    first = of_folder(pictures(tmp_path / "a" / "pics"), out)
    assert run(first) == 0
    assert run(first) == 0
    capsys.readouterr()
    others = of_folder(pictures(tmp_path / "b" / "pics", ("bird", "fish")), out)
    assert run(others) == 2
    assert "other configuration" in (said := capsys.readouterr().err) or "other data" in said
    (folder,) = out.glob("*/Normal/seed0")
    result = json.loads((folder / "result.json").read_text())  # of a run on every picture
    assert (result["validation_accuracy"], result["validation_examples"]) == (None, None)
    (folder / "result.json").unlink()
    for file in sorted((tmp_path / "a" / "pics" / "cat").iterdir())[:4]:
        file.unlink()
    assert run(first) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained on other data of the same name" in line
    assert (folder / "checkpoints").exists()


def begun(*_):
    raise StoppedError(15)


def test_a_picture_that_is_broken_ends_a_run_before_it_trains(tmp_path, capsys, monkeypatch):
    """Also where pictures are read as training goes; without it, the same command begins."""
    root = pictures(tmp_path / "pics")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(noise).save(broken := root / "cat" / "9.png")  # the tenth, for testing
    broken.write_bytes(broken.read_bytes()[:900])
    flags = [*of_folder(root, tmp_path / "out"), "--augment=random_resized_crop", "--image_size=8"]
    assert run(flags) == 2
    assert f"{broken} cannot be read" in capsys.readouterr().err
    broken.unlink()
    monkeypatch.setattr(single, "TrainingRun", begun)
    assert run(flags) == 128 + 15


def test_a_broken_picture_that_is_held_out_ends_a_run_before_it_trains(tmp_path, capsys):
    """Of those beyond validation, which are read after the last epoch alone."""
    root = pictures(tmp_path / "pics", count=20)
    flags = [*of_folder(root, tmp_path / "out"), "--augment=random_resized_crop", "--image_size=8"]
    flags += ["--train_size=10"]
    train = from_folder(root).train
    broken = train.files[take(train, len(train) - 1).indices[-1]]
    broken.write_bytes(broken.read_bytes()[:50])
    assert run(flags) == 2
    assert f"{broken} cannot be read" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/Normal/seed0/checkpoints/*"))


def test_a_run_knows_its_data_whoever_asks(tmp_path, capsys):
    """With another picture, which ones were trained on is not known."""
    root, out = pictures(tmp_path / "pics", count=20), tmp_path / "out"
    assert run([*of_folder(root, out), "--train_size=20"]) == 0
    (folder,) = out.glob("*/Normal/seed0")
    opened = load_run(folder)
    opened.check_data(from_folder(root))
    Image.new("L", (8, 8), 3).save(root / "cat" / "more.png")
    with pytest.raises(ValueError, match="is not what the run was trained on"):
        opened.cut(1, from_folder(root), refit=True)
    assert explore([f"--run={folder}"]) == 2
    assert "is not what the run was trained on" in capsys.readouterr().err
    assert predict([f"--run={folder}", f"--dataset=folder:{root}"]) == 0
    assert "has changed since the run was trained on it" in capsys.readouterr().out


def test_a_class_that_no_image_is_left_of_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(single, "TrainingRun", begun)
    flags = [*SMALL[:-2], "--train_size=8", "--batch_size=8", f"--out={tmp_path}"]
    assert run(flags) == 128 + 15
    labels = take(load("fashion_mini").train, 8).read(np.arange(8))[1]
    said, absent = capsys.readouterr().out, 10 - len({*labels.tolist()})
    assert f"no image is trained on of {absent} class(es): " in said
    assert "recipe paper: --batch_size=8 --optimizer=sgd --learning_rate=0.001 " in said


def test_a_checkpoint_of_another_run_is_refused(finished, tmp_path, capsys):
    folder = shutil.copytree(folder_in(finished), folder_in(tmp_path, seed=1))
    (folder / "result.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["configuration"]["seed"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    assert run([*SMALL, "--seed=1", f"--out={tmp_path}"]) == 2
    assert "is another run's; move it away" in capsys.readouterr().err


def test_another_jax_is_said_and_recorded(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (folder_in(tmp_path) / "result.json").unlink()
    monkeypatch.setattr(machine, "software", lambda: "jax 99")
    assert run([*SMALL, f"--out={tmp_path}"]) == 0
    assert "before, now with jax 99: the figures may differ" in capsys.readouterr().out
    assert result_in(tmp_path)["software"] == [*result_in(finished)["software"], "jax 99"]


def test_a_folder_deleted_while_it_trains_ends_the_run_with_a_line(tmp_path, monkeypatch, capsys):
    record = TrainingRun._record

    def deleting(self, stop):
        shutil.rmtree(self.folder.path)
        return record(self, stop)

    monkeypatch.setattr(TrainingRun, "_record", deleting)
    assert run([*SMALL, f"--out={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "was deleted while it trained" in line


@pytest.mark.slow
def test_a_reader_that_leaves_and_a_closed_terminal_lose_nothing(tmp_path):
    program = f"{' '.join(COMMAND)} --out={tmp_path / 'pipe'} | head -2"
    done = subprocess.run(program, shell=True, capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 120
    while not (result := folder_in(tmp_path / "pipe", "S1") / "result.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert json.loads(result.read_text())["epochs"] == 2
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    process = subprocess.Popen(
        [*COMMAND, f"--out={tmp_path / 'hup'}"], stdout=subprocess.PIPE, text=True
    )
    folder = folder_in(tmp_path / "hup", "S1")
    while not list(folder.glob("checkpoints/*.sha256.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGHUP
    assert "stopped and saved" in output
    # A log on a full disk: nothing can be printed, and the run ends as ever.
    with open("/dev/full", "w") as full:
        command = [*COMMAND, f"--out={tmp_path / 'full'}"]
        status = subprocess.run(command, stdout=full, stderr=full, check=False).returncode
    assert status == 0
    expected = json.loads(result.read_text())["fingerprint"]
    assert result_in(tmp_path / "full", "S1")["fingerprint"] == expected


def test_ctrl_c_while_modules_are_imported_has_no_traceback(tmp_path):
    program = (
        "import sys, os, signal\n"
        "from interflow_jax.cli import main\n"
        "def slow(name): os.kill(os.getpid(), signal.SIGINT)\n"
        "main.importlib.import_module = slow\n"
        "sys.exit(main.main('run', []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("stopped; to begin, run the same command again")


def test_a_csv_is_no_formula_and_a_name_no_escape_code(tmp_path, capsys):
    out, root = tmp_path / "runs", pictures(tmp_path / "p", ("=1+1", "\x1b[31mred"))
    assert run(of_folder(root, out)) == 0
    (folder,) = out.glob("*/Normal/seed0")
    picture = tmp_path / "\x1b[2J.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    assert predict([f"--run={folder}", str(picture), f"--out={tmp_path / 'a.csv'}"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    head, row = (tmp_path / "a.csv").read_text().splitlines()
    assert head == "file,class,probability,\\x1b[31mred,'=1+1"
    assert row.split(",")[0] == str(picture)  # as it opens
