"""What the README shows works, and says what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

import interflow_jax as ij
from interflow_jax.cli.parser import parse_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
METHODS = README.partition("## Methods")[2].partition("## Commands")[0]


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    (accuracy,) = re.findall(r"accuracy ([\d.]+) %", capsys.readouterr().out)
    assert float(accuracy) > 50, "five times what guessing has: it learned"


def test_its_drawing_is_the_script_s():
    script = ROOT / "docs" / "drawing.py"
    drawn = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert drawn.stdout == (ROOT / "docs" / "static" / "network.svg").read_text()


def test_it_is_one_page():
    assert len(README.splitlines()) <= 120


def test_the_networks_of_others_predict_and_learn(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "networks.md").read_text()
    namespace: dict = {"__name__": "networks"}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(example, "networks.md", "exec"), namespace)
    assert "block2/norm (1, 4, 4, 64)" in capsys.readouterr().out
    images, labels = np.zeros((16, 32, 32, 3), np.uint8), np.arange(16) % 10
    dataset = ij.data.from_arrays((images, labels), (images, labels))
    of_nnx = ij.Trainer(namespace["nnx_model"], dataset, epochs=1, batch_size=8)
    for trainer, state, branches in (  # the page trained the first itself
        (namespace["trainer"], namespace["state"], ("block0", "block1", "block2")),
        (of_nnx, of_nnx.train_epoch(of_nnx.init(), 0)[0], ("norm1", "conv2")),
    ):
        assert trainer.labels == branches
        assert trainer.predict(state, images).branch_logits.shape == (16, len(branches), 10)


def test_its_main_commands_parse():
    commands = re.findall(r"interflow run ([^`\n|&]*)", README)
    assert len(commands) >= 2
    for flags in commands:
        if "--help" not in flags and "--list_layers" not in flags:
            parse_run(shlex.split(flags)).check()


def test_its_methods_are_those_of_the_code():
    """Their branches and initial weights; a row is for methods of four and of seven branches."""
    starts = {"Xavier": (None, None)}
    named = ["Normal"]
    for row in re.findall(r"^\| (S\d, S\d) \| (.*) \|$", METHODS, re.MULTILINE):
        names, (taps, weights, start) = row[0].split(", "), row[1].split(" | ")
        given = [each.replace(",", "").split() for each in start.split("; ")]
        if start not in starts and not start.startswith("as"):
            starts[f"as {row[0]}"] = starts[start] = tuple(
                tuple(value for word in words for value in _repeated(word, words))
                for words in given
            )
        assert taps == "7, 9, 11, 13; 7 to 13"
        for name, numbers, values in zip(
            names, ((7, 9, 11, 13), tuple(range(7, 14))), starts[start], strict=True
        ):
            method = ij.METHODS[name]
            assert (method.taps, method.initial_weights) == (numbers, values)
            kind = {"fixed": "fixed", "learned, one per branch": "shared"}.get(weights, "class")
            assert method.fusion == kind
            named.append(name)
    assert sorted(named) == sorted(ij.METHODS)
    assert {*re.findall(r"`([A-Z]\w+)`", METHODS)} >= {*ij.BASELINES}


def _repeated(word, words):
    """A weight, as often as the factor behind it says."""
    if word.startswith("\u00d7"):
        return ()
    times = words[words.index(word) + 1 :][:1]
    return (float(word),) * int(times[0][1:] if times and times[0].startswith("\u00d7") else 1)


def test_the_layout_names_files_that_are_there():
    text = (ROOT / "docs" / "layout.md").read_text()
    files = [
        file
        for place in ("interflow_jax", "experiments", "docs")
        for file in ROOT.glob(f"{place}/**/*")
    ]
    assert {*re.findall(r"\w+\.(?:py|md)\b", text)} <= {file.name for file in files}


def test_its_links_lead_somewhere():
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/notebooks/*.ipynb")]
    for file in [ROOT / "README.md", *pages, ROOT / "results" / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / link).exists(), f"{file}: {link}"


def test_the_reference_has_every_public_name():
    named = {*re.findall(r"interflow_jax\.(\w+)", (ROOT / "docs" / "api.md").read_text())}
    public = {name for name in ij.__all__ if callable(getattr(ij, name))}
    assert public - named == {"NNXTaps"}  # an alias
