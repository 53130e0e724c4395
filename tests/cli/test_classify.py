"""The script that export writes beside a program, against the library that it does without."""

import json
import subprocess
import sys
import venv
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

import interflow_jax as ij
from interflow_jax.cli import export
from interflow_jax.cli.classify import pixels
from interflow_jax.data import pictures
from tests.cli.conftest import folder_in
from tests.cli.test_export import JAX_ALONE

RUN = "\nimport runpy\nsys.argv[:] = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"


def save(folder):
    """Pictures of many modes, sizes and orientations."""
    random, files = np.random.default_rng(0), []
    for number in range(24):
        height, width = random.integers(1, 90, 2)
        levels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        mode = ("RGB", "RGBA", "L", "LA", "P", "1")[number % 6]
        picture = Image.fromarray(levels, "RGBA").convert(mode)
        options = {}
        if mode == "P":
            options["transparency"] = 3
        if number % 2 == 0:
            options["exif"] = exif = Image.Exif()
            exif[0x0112] = 1 + number // 2 % 8
        ending = "tif" if number % 8 == 7 else "jpg" if mode in ("RGB", "L") else "png"
        files.append(folder / f"{number}.{ending}")
        picture.save(files[-1], **options)
    return files


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [[28, 28, 1], [32, 24, 3]])
def test_it_takes_pictures_as_a_run_does(shape, resize, tmp_path):
    for file in save(tmp_path):
        with pictures.opened(file) as picture:
            expected = pictures.fit(picture, tuple(shape), resize=resize)
        np.testing.assert_array_equal(pixels(str(file), shape, resize), expected, file.name)


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_damaged_exif_is_ignored_as_a_run_does(ending, tmp_path):
    """Or turns the picture, where that much of it can be read."""
    random, exif = np.random.default_rng(1), Image.Exif()
    exif[0x0112], exif[0x829A] = 6, 1.5  # orientation, and an exposure time
    picture, outcomes = Image.fromarray(random.integers(0, 256, (9, 13, 3), np.uint8)), set()
    for number in range(60):
        block = bytearray(exif.tobytes())
        for place in random.integers(6, len(block), number % 5):
            block[place] = random.integers(256)
        file = tmp_path / f"{number}.{ending}"
        picture.save(file, exif=bytes(block))
        with pictures.opened(file) as opened:
            expected = pictures.fit(opened, (28, 20, 3))
        np.testing.assert_array_equal(pixels(str(file), [28, 20, 3], "squash"), expected, file.name)
        outcomes.add(expected.tobytes())
    assert len(outcomes) > 1


@pytest.fixture
def exported(finished, tmp_path):
    assert export([f"--run={folder_in(finished)}", f"--out={tmp_path / 'it' / 'my model'}"]) == 0
    return tmp_path / "it"


def classified(exported, files, *python):
    done = subprocess.run(
        [*python, "classify.py", *files],
        cwd=exported,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def expected(finished, files):
    rows = ij.load_run(folder_in(finished)).predict_files(files)
    return [f"{row['file']}: {row['class']} {row['probability']:.1%}" for row in rows]


def test_it_needs_no_project_and_says_what_predict_files_says(finished, exported, tmp_path):
    files = save(tmp_path)
    lines = classified(exported, files, sys.executable, "-I", "-c", JAX_ALONE + RUN)
    assert lines == expected(finished, files)
    assert json.loads((exported / "my model.json").read_text())["resize"] == "squash"


def test_what_cannot_be_read_is_said_and_the_others_are_classified(finished, exported, tmp_path):
    good, broken = save(tmp_path)[0], tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:-20])
    done = subprocess.run(
        [sys.executable, exported / "classify.py", tmp_path / "none.png", broken, good],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == expected(finished, [good])
    assert [line.partition(" cannot be read: ")[0] for line in done.stderr.splitlines()] == [
        str(tmp_path / "none.png"),
        str(broken),
    ]


@pytest.mark.slow
def test_it_runs_where_nothing_else_is_installed(finished, exported, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    needs = [
        f"{name}=={version(name)}" for name in ("jax", "jaxlib", "flatbuffers", "Pillow", "numpy")
    ]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *needs], check=True)
    files = save(tmp_path)
    assert classified(exported, files, python) == expected(finished, files)


def test_a_script_of_one_s_own_stays(finished, exported, capsys):
    script = exported / "classify.py"
    again = [f"--run={folder_in(finished)}", f"--out={exported / 'other'}", "--branches=2"]
    assert export(again) == 0
    assert "'my model'" in script.read_text()
    script.write_text("print('mine')\n")
    assert export(again) == 0
    assert script.read_text() == "print('mine')\n"
    assert f"{script} is there, and is not this program's: it stays" in capsys.readouterr().out
    assert "'other'" in (exported / "classify_other.py").read_text()
