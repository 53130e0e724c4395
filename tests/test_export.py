"""Exported models against the ones that they were exported from."""

import hashlib
import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax.data.preprocessing import Preprocessing, normalize

PREPROCESSING = Preprocessing((0.5,), (0.25,), augment=False)
SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def model():
    return ij.build("S3", 3, width=1 / 16, depth=5, taps=(3, 4, 5))


@pytest.fixture(scope="module")
def variables(model):
    init = jax.jit(partial(model.init, train=False))
    return init(jax.random.key(0), jnp.zeros((1, *SHAPE)))


def exported(program):
    return jax.export.deserialize(bytearray(program))


# A size for each path of conv3x3 on CPU, as height, channels in and out, stride.
@pytest.mark.parametrize(
    "size", [(2, 8, 8, 1), (2, 8, 8, 2), (8, 3, 16, 1), (8, 128, 128, 1), (8, 16, 16, 1)]
)
def test_every_path_of_the_convolution_takes_any_batch_to_the_bit(size, key):
    height, channels_in, channels_out, stride = size
    kernel = jax.random.normal(key, (3, 3, channels_in, channels_out))
    convolve = jax.jit(lambda x: ij.conv3x3(x, kernel, stride))
    # What it computes without oneDNN, which is left out of every exported program.
    expected = jax.jit(lambda x: ij.conv3x3(x, kernel, stride, library="xla"))
    (batch,) = jax.export.symbolic_shape("batch")
    shape = (height, height, channels_in)
    spec = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    program = jax.export.export(convolve, platforms=("cpu", "cuda", "tpu"))(spec)
    x = jax.random.normal(key, (3, *shape))
    assert "onednn" not in program.mlir_module()
    np.testing.assert_array_equal(program.call(x), expected(x))


def test_other_platforms_get_xlas_convolution_alone(model, variables):
    def text(*platforms):
        program = ij.to_stablehlo(model, variables, PREPROCESSING, SHAPE, platforms)
        return exported(program).mlir_module()

    branches = len(model.labels)
    for platform in ("cuda", "tpu"):
        program = text(platform)
        assert program.count("stablehlo.convolution(") == model.backbone.depth
        assert program.count("stablehlo.dot_general") == branches
    assert text("cpu").count("stablehlo.dot_general") > branches


def test_supervised_branches_predict_by_their_own_logits(model, variables):
    images = np.zeros((2, *SHAPE), np.uint8)
    prediction = jax.jit(model.apply)(variables, normalize(PREPROCESSING, images))
    for supervised, alone in ((True, prediction.branch_logits), (False, prediction.alone)):
        program = ij.to_stablehlo(
            model, variables, PREPROCESSING, SHAPE, ("cpu",), supervised=supervised
        )
        _, branches = exported(program).call(images)
        np.testing.assert_allclose(branches, jax.nn.softmax(alone), rtol=1e-5)
    assert not np.allclose(prediction.branch_logits, prediction.alone)


def test_what_cannot_be_exported_is_named(model, variables):
    with pytest.raises(ValueError, match=r"platforms are \('cpu', 'ios'\); choose from cpu, cuda"):
        ij.to_stablehlo(model, variables, PREPROCESSING, SHAPE, ("cpu", "ios"))

    class CountsItsBatch(nn.Module):
        @nn.compact
        def __call__(self, images):
            return [images if images.shape[0] > 8 else images + 1]

    model = ij.Interflow(CountsItsBatch(), 3, ij.Fusion("shared"))
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    with pytest.raises(ValueError, match="the model asks for the size of its batch"):
        ij.to_stablehlo(model, variables, PREPROCESSING, SHAPE)


@pytest.fixture
def file(model, variables, tmp_path):
    program = ij.to_stablehlo(model, variables, PREPROCESSING, SHAPE, ("cpu",))
    about = {"sha256": hashlib.sha256(program).hexdigest(), "versions": {"jax": jax.__version__}}
    file = tmp_path / "model.stablehlo"
    file.write_bytes(program)
    (tmp_path / "model.stablehlo.json").write_text(json.dumps(about))
    return file


def test_a_file_is_opened_with_what_is_said_of_it(file):
    program, about = ij.load_exported(file)
    assert program.platforms == ("cpu",)
    assert about["versions"] == {"jax": jax.__version__}


def test_a_broken_file_or_another_models_is_refused_in_a_line(file):
    beside = file.with_name("model.stablehlo.json")
    content, about = file.read_bytes(), json.loads(beside.read_text())
    newer = about | {"versions": {"jax": "9999.1.0"}}
    odd_ones = ([], 7, None, "text", {}, about | {"versions": []}, about | {"versions": {"jax": 1}})
    odd_ones += (about | {"versions": {"jax": "new"}}, about | {"versions": {"jax": None}})
    digest = hashlib.sha256(content[:100]).hexdigest()
    for program, text, words in (
        (content[:-1] + bytes([content[-1] ^ 1]), json.dumps(about), "is broken, or"),
        (content[: len(content) // 2], json.dumps(about), "is broken, or"),
        (content, json.dumps(about | {"sha256": "0" * 64}), "is another model's"),
        (content, json.dumps(newer), "was written by jax 9999.1.0; jax"),
        (content, "{", "cannot be read"),
        *((content, json.dumps(odd), "cannot be read") for odd in odd_ones),
        (content, "[" * 100_000, "cannot be read"),
        (content[:100], json.dumps(about | {"sha256": digest}), "jax promises to for six months"),
    ):
        file.write_bytes(program)
        beside.write_text(text)
        with pytest.raises(ValueError, match=words) as error:
            ij.load_exported(file)
        assert "\n" not in str(error.value)
    beside.unlink()
    with pytest.raises(ValueError, match="No such file"):
        ij.load_exported(file)
