"""Runs that were taken away, against the ones that stayed."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save

import interflow_jax as ij
from experiments import export
from interflow_jax.data import recipes, splits
from interflow_jax.data.preprocessing import normalize
from tests.cli.conftest import folder_in, result_in

DEPTH = Path(__file__).parents[2] / "docs" / "depth.md"
EXAMPLES = re.findall(
    r"```python\n(.*?)```", DEPTH.read_text().partition("## Export")[2], re.DOTALL
)

JAX_ALONE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Installed:
    names = {"jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers", "PIL"}

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in self.names | sys.stdlib_module_names or top.startswith("_"):
            return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Installed()]
for module in ("flax", "interflow_jax"):
    try:
        __import__(module)
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit(f"{module} can be imported")
"""
"""Lets a child import what `pip install jax flatbuffers Pillow` brings, nothing else."""


@pytest.fixture
def flags(finished, tmp_path):
    return [f"--run={folder_in(finished)}", f"--out={tmp_path / 'model.stablehlo'}"]


def probabilities(run, images):
    """Of the jitted original, as the exported program has them."""

    @jax.jit
    def predict(images):
        images = normalize(run.preprocessing, images)
        prediction = run.model.apply(run.variables, images, train=False)
        return jax.nn.softmax(prediction.logits), jax.nn.softmax(run.alone(prediction))

    return predict(images)


def some_images(count):
    return recipes.load("fashion_mini").test.read(np.arange(count))[0]


def test_the_documented_lines_need_no_project_and_agree_to_the_bit(finished, flags, tmp_path):
    assert export.main(flags) == 0
    images = some_images(5)  # the run was trained on 64
    np.save(tmp_path / "images.npy", images)
    saving = "\nnp.savez('out.npz', probabilities, branches)"
    child = subprocess.run(
        [sys.executable, "-I", "-c", JAX_ALONE + EXAMPLES[0] + saving],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    fused, branches = np.load(tmp_path / "out.npz").values()
    loaded = ij.load_run(folder_in(finished))
    expected = probabilities(loaded, images)
    np.testing.assert_array_equal(fused, expected[0])
    np.testing.assert_array_equal(branches, expected[1])
    assert branches.shape == (5, 3, 10)
    assert child.stdout.strip() == str([loaded.class_names[label] for label in fused.argmax(-1)])


@pytest.mark.parametrize("name", ["a.safetensors", "a.onnx"])
def test_a_program_gets_no_other_format_s_name(finished, name, tmp_path, capsys):
    assert export.main([f"--run={folder_in(finished)}", f"--out={tmp_path / name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"a program is no {name[2:]} file" in line
    assert not list(tmp_path.iterdir())


def test_the_documented_lines_are_ten():
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 10


def test_a_digest_that_differs_ends_the_documented_lines(flags, tmp_path):
    assert export.main(flags) == 0
    file = tmp_path / "model.stablehlo"
    file.write_bytes(file.read_bytes()[:-1])
    child = subprocess.run(
        [sys.executable, "-c", EXAMPLES[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 1
    assert child.stderr == "model.stablehlo is broken, or its .json is another model's\n"


def test_what_stands_beside_the_program_is_the_runs(finished, flags, tmp_path):
    assert export.main(flags) == 0
    program, about = ij.load_exported(tmp_path / "model.stablehlo")
    result = result_in(finished)
    assert program.platforms == tuple(about["platforms"]) == ("cpu", "cuda", "tpu")
    assert about["run"] == result
    for name in ("class_names", "image_shape", "branches", "parameters", "fingerprint"):
        assert about[name] == result[name]
    assert about["versions"]["jax"] == jax.__version__
    assert about["command"].startswith("python -m interflow_jax export --run=")
    assert export.main([*flags, "--platforms=cpu"]) == 0
    assert ij.load_exported(tmp_path / "model.stablehlo")[0].platforms == ("cpu",)


@pytest.mark.parametrize(
    ("way", "mean"),  # above zero, the branches count as supervised
    [("", 0.0), ("refit", 0.0), ("alone", 0.0), ("alone", 1.0)],
)
def test_a_cut_is_measured_and_opens_bit_for_bit(finished, tmp_path, capsys, way, mean):
    folder, file, data = tmp_path / "run", tmp_path / "cut", recipes.load("fashion_mini")
    shutil.copytree(folder_in(finished), folder)
    result = result_in(finished) | {"auxiliary_mean": mean}
    (folder / "result.json").write_text(json.dumps(result))
    flags = [f"--run={folder}", f"--out={file}", "--branches=2", *([f"--{way}"] if way else [])]
    assert export.main([*flags, "--platforms=cpu"]) == 0
    said = capsys.readouterr().out
    program, about = ij.load_exported(file)
    assert export.main([*flags, "--format=safetensors"]) == 0
    run, cut = ij.load_run(folder), ij.load_safetensors(file)
    images, labels = data.test.read(np.arange(len(data.test)))
    whole, ours = run.predict(images), cut.predict(images)
    for source in (about, about["run"], cut.result):
        for name, prediction in (("cut_accuracy", ours), ("whole_accuracy", whole)):
            hits = np.asarray(prediction.logits).argmax(-1) == labels
            assert source[name] == 100 * hits.mean()
    words = f"; accuracy {about['cut_accuracy']:.2f} % of 1,000 test images, the whole's "
    assert f"{words}{about['whole_accuracy']:.2f} %" in said
    for theirs, expected in zip(
        program.call(images[:64]), probabilities(cut, images[:64]), strict=True
    ):
        np.testing.assert_array_equal(theirs, expected)
    if not way:
        model, variables = ij.truncate(run.model, run.variables, 2)
        assert cut.model == model
        assert about["branches"] == list(run.labels[:2])
        size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert about["parameters"] == size < result["parameters"]
    made = run.cut(2, data if way == "refit" else None, way == "refit", way == "alone")
    assert (made.model, made.labels) == (cut.model, cut.labels)
    np.testing.assert_array_equal(made.predict(images).logits, ours.logits)
    if way == "refit":
        assert cut.result["cut_fitted_to"] == "4,000 held-out training images"
        assert f"fusion fitted to {cut.result['cut_fitted_to']}" in said
        plain = np.asarray(run.cut(2).predict(images).logits).argmax(-1) == labels
        assert about["cut_accuracy"] > 100 * plain.mean()
    elif way == "alone":
        np.testing.assert_allclose(ours.logits, run.alone(whole)[:, 1], rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match="was cut to a branch alone; cut the whole run"):
            cut.cut(1)


def test_a_cut_that_loses_more_than_a_point_is_warned_of(flags, capsys, monkeypatch):
    def cut(run, *given):
        run.result.update(cut_accuracy=accuracy, whole_accuracy=93.3)
        return run

    monkeypatch.setattr(ij.TrainedRun, "cut", cut)
    flags = [flags[0], flags[1].replace("stablehlo", "safetensors")]
    flags += ["--branches=1", "--format=safetensors"]
    for accuracy, way, warned in ((50.0, [], True), (92.4, [], False), (50.0, ["--alone"], False)):
        assert export.main([*flags, *way]) == 0
        *warning, wrote = capsys.readouterr().out.splitlines()
        assert len(warning) == warned
        assert all("loses 43.30 points; --refit" in line and "--alone" in line for line in warning)
        assert wrote.endswith(
            f"; accuracy {accuracy:.2f} % of 1,000 test images, the whole's 93.30 %"
        )


def test_a_fusion_is_fitted_to_unseen_images_or_says_that_they_are_not(finished):
    run, data = ij.load_run(folder_in(finished)), recipes.load("fashion_mini")
    few = data._replace(test=splits.take(data.test, 20), train=splits.take(data.train, 300))
    del run.result["data"]  # as of a run that is older
    assert run.cut(1, few, refit=True).result["cut_fitted_to"] == "44 held-out training images"
    seen = few._replace(train=splits.take(few.train, 256))
    fitted = run.cut(1, seen, refit=True)
    assert fitted.result["cut_fitted_to"] == "256 trained-on training images"
    again = fitted.cut(1)  # measured no more, fitted still
    assert {*fitted.result} - {*again.result} == {"cut_accuracy", "whole_accuracy"}
    assert again.model == fitted.model
    for data, options, words in (
        (None, {"refit": True}, "give data to fit to"),
        (few, {"refit": True, "alone": True}, "leave alone out"),
        (few._replace(class_names=tuple("abcdefghij")), {}, "has other classes than the run"),
    ):
        with pytest.raises(ValueError, match=words):
            run.cut(1, data, **options)


def test_a_cut_without_its_data_says_that_it_is_not_measured(finished, tmp_path, capsys):
    folder, file = tmp_path / "run", tmp_path / "cut"
    shutil.copytree(folder_in(finished), folder)
    result = result_in(finished) | {"dataset": f"folder:{tmp_path / 'gone'}"}
    (folder / "result.json").write_text(json.dumps(result))
    flags = [f"--run={folder}", f"--out={file}", "--branches=2", "--platforms=cpu"]
    assert export.main([*flags, "--refit"]) == 2
    assert "--refit: " in capsys.readouterr().err
    assert not file.exists()
    assert export.main(flags) == 0
    assert f"; accuracy not measured: '{tmp_path / 'gone'}'" in capsys.readouterr().out
    about = ij.load_exported(file)[1]
    assert "gone" in about["not_measured"]
    assert "cut_accuracy" not in about


@pytest.fixture
def safetensors(finished, tmp_path):
    file = tmp_path / "model.safetensors"
    flags = [f"--run={folder_in(finished)}", f"--out={file}", "--format=safetensors"]
    assert export.main(flags) == 0
    return file


def test_safetensors_and_back(finished, safetensors):
    ours, theirs = ij.load_run(folder_in(finished)), ij.load_safetensors(safetensors)
    images = some_images(7)
    jax.tree.map(np.testing.assert_array_equal, ours.predict(images), theirs.predict(images))
    assert (theirs.result, theirs.labels) == (ours.result, ours.labels)
    assert jax.tree.structure(ours.variables) == jax.tree.structure(theirs.variables)


def test_others_read_the_safetensors_by_the_layers_names(finished, safetensors):
    arrays = load_file(safetensors)
    variables = ij.load_run(folder_in(finished)).variables
    kernel = variables["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(arrays["params/backbone/conv1/kernel"], kernel)
    assert "batch_stats/backbone/conv1/norm/mean" in arrays
    sizes = [array.size for name, array in arrays.items() if name.startswith("params/")]
    assert sum(sizes) == result_in(finished)["parameters"]


def test_safetensors_that_are_broken_or_anothers_are_refused_in_a_line(finished, safetensors):
    content, another = safetensors.read_bytes(), ij.load_run(folder_in(finished))
    another.result["width"] *= 2
    for broken, words in (
        (ij.to_safetensors(another), f"{safetensors} cannot be read .* another network"),
        (content[:-1] + bytes([content[-1] ^ 1]), "is broken"),
        (content[:-1], "cannot be read"),
        (save({"weight": np.zeros(3)}), "is it an exported run"),
        (b"", "cannot be read"),
    ):
        safetensors.write_bytes(broken)
        with pytest.raises(ValueError, match=words) as error:
            ij.load_safetensors(safetensors)
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax2onnx") is None, reason="docs/depth.md says how to install it"
)
def test_the_documented_lines_make_an_onnx_file_that_predicts_alike(
    safetensors, tmp_path, monkeypatch
):
    import onnxruntime  # pyright: ignore[reportMissingImports]

    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[1], "depth.md", "exec"), {"__name__": "depth"})
    session = onnxruntime.InferenceSession("model.onnx")
    images = some_images(5)
    outputs = session.run(None, {session.get_inputs()[0].name: images})
    for ours, theirs in zip(
        probabilities(ij.load_safetensors(safetensors), images), outputs, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
