"""BatchNormRelu is Linen's BatchNorm and ReLU, with the same variables."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interflow_jax.ops import onednn
from interflow_jax.ops.normalization import BatchNormRelu


class Linens(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
        return nn.relu(nn.share_scope(self, norm) or norm(x))


KEYS = jax.random.split(jax.random.key(0), 5)
X = 3 * jax.random.normal(KEYS[4], (8, 5, 4, 6)) + 1
VARIABLES = {  # no identity
    "params": {"scale": jax.random.normal(KEYS[0], (6,)), "bias": jax.random.normal(KEYS[1], (6,))},
    "batch_stats": {
        "mean": jax.random.normal(KEYS[2], (6,)),
        "var": jnp.exp(jax.random.normal(KEYS[3], (6,))),
    },
}


def apply(layer, params, x, train=True):
    return layer.apply({**VARIABLES, "params": params}, x, train, mutable=["batch_stats"])


def loss(layer, params, x):
    return jnp.sum(jnp.sin(apply(layer, params, x)[0]))


def gradients(layer, params, x):
    return jax.grad(loss, argnums=(1, 2))(layer, params, x)


def hessian_vector(layer, params, x):
    tangents = jax.tree.map(jnp.cos, (params, x))
    return jax.jvp(lambda *primals: gradients(layer, *primals), (params, x), tangents)


def gradients_of_statistics(layer, params, x):
    def loss(params, x):
        y, updates = apply(layer, params, x)
        return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(a)) for a in jax.tree.leaves(updates))

    return jax.grad(loss, argnums=(0, 1))(params, x)


def forward_mode(layer, params, x):
    tangents = jax.tree.map(jnp.cos, (params, x))
    return jax.jvp(lambda *primals: apply(layer, *primals), (params, x), tangents)


def per_example(layer, params, x):
    return jax.vmap(lambda x: gradients(layer, params, x))(jnp.stack([x, x * x]))


def evaluation(layer, params, x):
    return apply(layer, params, x, train=False)


def initial(layer, params, x):
    return layer.init(KEYS[0], x, train=True)


@pytest.mark.parametrize(
    "function",
    [
        *(initial, apply, evaluation, gradients, gradients_of_statistics),
        *(forward_mode, hessian_vector, per_example),
    ],
)
def test_it_is_linens(function):
    ours, theirs = (
        jax.jit(lambda layer=layer: function(layer, VARIABLES["params"], X))()
        for layer in (BatchNormRelu(), Linens())
    )
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(scale, 1))  # noqa: E731
    jax.tree.map(close, ours, theirs)


@pytest.mark.parametrize("of_parameters", ["float32", "float64"])
def test_float64_is_linens_to_its_rounding(of_parameters):
    """With float32 parameters, too; statistics keep their dtype, and Linen's do not."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(of_parameters), VARIABLES["params"])
        (ours, theirs), (our_gradients, their_gradients) = (
            [
                f(layer, params, X.astype("float64"))
                for layer in (BatchNormRelu("float64"), Linens())
            ]
            for f in (apply, gradients)
        )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-12)
    for mine, linens in zip(*map(jax.tree.leaves, (ours[1], theirs[1])), strict=True):
        assert mine.dtype == "float32"
        np.testing.assert_allclose(mine, linens, rtol=1e-6)
    for mine, linens in zip(*map(jax.tree.leaves, (our_gradients, their_gradients)), strict=True):
        assert mine.dtype == linens.dtype
        np.testing.assert_allclose(mine, linens, rtol=1e-6 if mine.dtype == "f4" else 0, atol=1e-11)


def test_a_gradient_takes_few_passes_over_the_map():
    """Two sums over it, besides the batch's mean and variance; Linen's takes three."""
    for layer, sums in ((BatchNormRelu(library="xla"), 4), (Linens(), 5)):
        program = jax.jit(lambda params, x, layer=layer: gradients(layer, params, x))
        text = program.lower(VARIABLES["params"], X).as_text()
        assert text.count("(tensor<8x5x4x6xf32>, tensor<f32>) -> tensor<6xf32>") == sums


@pytest.mark.skipif(onednn.package() is None, reason="interflow_jax_onednn is not installed")
def test_training_calls_the_package_unless_it_is_exported_or_xlas():
    def calls(library, function=gradients, **lowering):
        layer = BatchNormRelu(library=library)
        program = jax.jit(lambda params, x: function(layer, params, x))
        traced = program.trace(VARIABLES["params"], X)
        return traced.lower(**lowering).as_text().count("@interflow_jax_onednn")

    assert calls("auto") == calls("onednn") == 2  # the layer and its gradient
    assert calls("xla") == calls("auto", lowering_platforms=("tpu",)) == 0
    assert calls("auto", evaluation) == 0
    program = jax.jit(lambda params, x: gradients(BatchNormRelu(), params, x))
    exported = jax.export.export(program)(VARIABLES["params"], X)
    assert "@interflow_jax_onednn" not in exported.mlir_module()


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from tests.ops.test_normalization import VARIABLES, X, BatchNormRelu, Linens, loss

mesh = Mesh(np.array(jax.devices()), ("batch",))
for check in (True, False):
    results = [
        jax.jit(
            jax.shard_map(
                jax.grad(lambda p, x, layer=layer: jax.lax.pmean(loss(layer, p, x), "batch")),
                mesh=mesh, in_specs=(P(), P("batch")), out_specs=P(), check_vma=check,
            )
        )(VARIABLES["params"], X)
        for layer in (BatchNormRelu(), Linens())
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results)

params = jax.tree.map(lambda leaf: jax.numpy.stack([leaf, 2 * leaf]), VARIABLES["params"])
for layer in (BatchNormRelu(), Linens()):
    def of_one(params, x):
        own = jax.tree.map(lambda leaf: leaf[0], params)
        return jax.lax.psum(loss(layer, own, x), "batch")
    of_all = jax.shard_map(of_one, mesh=mesh, in_specs=(P("batch"), P()), out_specs=P())
    results.append(jax.jit(jax.grad(of_all, argnums=(0, 1)))(params, X))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *results[2:])
"""


def test_the_gradient_of_what_shards_share_is_of_all(on_cpu_devices):
    """Of parameters, and of a map that parameters of each shard's own take."""
    on_cpu_devices(2, SHARDED)


def test_a_gradient_can_be_transposed():
    """It is linear: its transpose is the derivative in the direction that it is given."""

    def layer(x):
        return apply(BatchNormRelu(), VARIABLES["params"], x)[0]

    y, vjp = jax.vjp(layer, X)
    (tangent,) = jax.linear_transpose(vjp, y)((jnp.cos(X),))
    expected = jax.jvp(layer, (X,), (jnp.cos(X),))[1]
    np.testing.assert_allclose(tangent, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_float32_statistics():
    low = X.astype(jnp.bfloat16)
    y, updates = apply(BatchNormRelu(jnp.bfloat16), VARIABLES["params"], low)
    expected, _ = apply(BatchNormRelu(), VARIABLES["params"], low)
    assert updates["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
