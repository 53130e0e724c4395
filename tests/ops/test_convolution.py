"""conv3x3 is the 3x3 convolution with one pixel of padding, whatever computes it."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import interflow_jax as ij
from interflow_jax import conv3x3, cpu_compiler_options
from interflow_jax.ops import cpu_convolution, onednn
from interflow_jax.ops.normalization import BatchNormRelu

# Height, width, channels in and out, stride: one for each path on a CPU.
PATHS = {
    "_dense": (2, 2, 8, 12, 1),
    "_sum_over_taps": (4, 3, 128, 128, 1),
    "_multiples": (7, 6, 3, 16, 1),
    "_winograd": (6, 7, 128, 128, 1),
    "_input_gradient_by_phases": (12, 11, 12, 24, 2),
    "forward": (9, 5, 24, 16, 1),
}
with_onednn = pytest.mark.skipif(onednn.package() is None, reason="oneDNN is not installed")
our_paths = partial(conv3x3, library="xla")
every_path = pytest.mark.parametrize("size", PATHS.values(), ids=PATHS)


def draw(size, batch=2, dtype=np.float32, seed=0):
    """An input, a kernel and a gradient of the output."""
    height, width, channels_in, channels_out, stride = size
    outputs = (-(-height // stride), -(-width // stride))
    shapes = (height, width, channels_in), (3, channels_in, channels_out), (*outputs, channels_out)
    generator = np.random.default_rng(seed)
    return [
        jnp.asarray(generator.normal(size=(first, *shape)), dtype)
        for first, shape in zip((batch, 3, batch), shapes, strict=True)
    ]


def xla(x, kernel, stride=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), (1, 1), (1, 1), layout
    )


def value_and_gradients(x, kernel, gradient, stride, convolve=conv3x3):
    value, vjp = jax.vjp(lambda *inputs: convolve(*inputs, stride), x, kernel)
    return value, *vjp(gradient)


def exact(x, kernel, gradient, stride):
    """The same in float64, tap by tap."""
    x, kernel, gradient = (np.asarray(array, np.float64) for array in (x, kernel, gradient))
    rows, columns = (stride * size for size in gradient.shape[1:3])
    padded = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
    value, x_gradient, kernel_gradient = map(np.zeros_like, (gradient, padded, kernel))
    for i, j in np.ndindex(3, 3):
        pixels = np.s_[:, i : i + rows : stride, j : j + columns : stride]
        value += padded[pixels] @ kernel[i, j]
        x_gradient[pixels] += gradient @ kernel[i, j].T
        kernel_gradient[i, j] = np.tensordot(padded[pixels], gradient, ((0, 1, 2), (0, 1, 2)))
    return value, x_gradient[:, 1 : 1 + x.shape[1], 1 : 1 + x.shape[2]], kernel_gradient


def assert_close(arrays, expected, error=2e-6, largest=3e-5):
    """Root mean square and largest error, of the root mean square of what is expected."""
    for array, right in zip(arrays, expected, strict=True):
        right = np.asarray(right, np.float64)
        size = np.sqrt(np.mean(right**2)) + 1e-6
        errors = (np.asarray(array, np.float64) - right) / size
        assert np.sqrt(np.mean(errors**2)) < error
        assert np.abs(errors).max() < largest


def random_sizes(count):
    generator = np.random.default_rng(0)
    sizes = []
    while len(sizes) < count:
        height, width = generator.integers(1, generator.choice([4, 20]), 2)
        channels = generator.choice([1, 2, 3, 5, 8, 16, 17, 32, 64, 128, 130], 2)
        if channels.prod() * height * width < 50_000:
            sizes.append(tuple(map(int, (height, width, *channels, generator.integers(1, 3)))))
    return sizes


@pytest.mark.parametrize("library", ["xla", pytest.param("auto", marks=with_onednn)])
def test_random_sizes_are_exact_to_float32(library):
    convolve = partial(conv3x3, library=library)
    sizes = [*PATHS.values(), *random_sizes(30)]
    inputs = [draw(size, batch=1 + seed % 3, seed=seed) for seed, size in enumerate(sizes)]

    @jax.jit
    def outputs():  # of constants, for which XLA compiles twice as fast
        return [
            value_and_gradients(*arrays, size[-1], convolve)
            for arrays, size in zip(inputs, sizes, strict=True)
        ]

    for arrays, size, found in zip(inputs, sizes, outputs(), strict=True):
        assert_close(found, exact(*arrays, size[-1]))


def test_every_path_on_a_cpu_is_among_those():
    paths = {}
    for height, width, *channels, stride in PATHS.values():
        path = cpu_convolution.path((2, height, width, channels[0]), (3, 3, *channels), stride)
        paths[path.__name__] = stride
    assert set(paths) == {name for name in PATHS if name != "_input_gradient_by_phases"}


def calls(program, *inputs, platforms=("cpu",)):
    """How many calls of oneDNN it is lowered to."""
    text = jax.jit(program).trace(*inputs).lower(lowering_platforms=platforms).as_text()
    return text.count("@interflow_jax_onednn")


@with_onednn
def test_onednn_is_chosen_by_size_pass_dtype_and_platform():
    def step(library, size, dtype="float32"):
        program = partial(value_and_gradients, convolve=partial(conv3x3, library=library))
        return partial(program, stride=size[-1]), *draw(size, dtype=dtype)

    narrow, wide, small = (12, 11, 12, 24, 2), PATHS["_winograd"], (2, 2, 64, 64, 1)
    counts = [calls(*step("auto", size)) for size in (narrow, (9, 9, 128, 128, 1), small)]
    assert counts == [3, 0, 2]
    assert calls(*step("xla", narrow)) == 0
    assert calls(*step("onednn", wide)) == 3
    assert calls(*step("auto", narrow), platforms=("tpu",)) == 0
    assert calls(*step("auto", (9, 9, 32, 32, 1), "bfloat16")) in (0, 3)  # by the CPU
    for size, stride in ((9, 1), (2, 1), (2, 2)):
        shapes = (2, stride * size, stride * size, 512), (3, 3, 512, 512), stride
        for name, fast in product(("forward", "input_gradient", "kernel_gradient"), (False, True)):
            pays = fast and (size > 2 or name != "kernel_gradient")
            assert cpu_convolution.onednn_pays(name, *shapes, fast) == pays


@with_onednn
def test_an_exported_program_is_without_onednn():
    model = ij.build("Normal", 10, depth=4, width=1 / 16)
    images = jnp.zeros((2, 8, 8, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    predict = partial(model.apply, train=False)
    assert calls(predict, variables, images) > 0
    exported = jax.export.export(jax.jit(predict))(variables, images)
    assert "@interflow_jax_onednn" not in exported.mlir_module()


@with_onednn
def test_training_with_onednn_agrees_and_repeats_to_the_bit():
    images = jax.random.normal(jax.random.key(1), (20, 12, 12, 3))
    labels = jnp.arange(20) % 10
    optimizer = ij.make_optimizer(1e-2)

    def train(convolution):
        model = ij.build("Normal", 10, depth=4, width=1 / 8)
        model = model.clone(backbone=model.backbone.clone(convolution=convolution))
        state = ij.create_state(model, optimizer, jax.random.key(0), images.shape[1:])
        step = jax.jit(partial(ij.train_step, model, optimizer))
        for _ in range(3):
            state, _ = step(state, images, labels)
        return jax.tree.map(np.asarray, state.params)

    theirs, ours, again = map(train, ("xla", "onednn", "onednn"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, again)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(onednn, "package", lambda: None)
    assert onednn.onednn_version() is None
    assert onednn.INSTALL in onednn.hint()
    x, kernel, _ = draw(PATHS["forward"])
    conv3x3(x, kernel)
    with pytest.raises(ValueError, match=r"not installed: pip install ./onednn"):
        conv3x3(x, kernel, library="onednn")
    with pytest.raises(ValueError, match="library is 'eigen'; choose one of auto, xla, onednn"):
        conv3x3(x, kernel, library="eigen")


@with_onednn
def test_the_version_that_a_run_records():
    assert onednn.onednn_version().count(".") == 2
    assert onednn.hint() is None


@every_path
def test_bfloat16_is_summed_in_float32_and_rounded_once(size):
    arrays = draw(size, dtype=jnp.bfloat16)
    outputs = jax.jit(value_and_gradients, static_argnums=(3, 4))(*arrays, size[-1], our_paths)
    assert [array.dtype for array in outputs] == [jnp.bfloat16] * 3
    assert_close(outputs, exact(*arrays, size[-1]), error=2**-8, largest=2**-4)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        arrays = draw(PATHS["_multiples"], dtype=np.float64)
        assert_close(value_and_gradients(*arrays, 1), exact(*arrays, 1), 1e-15, 1e-14)


def test_first_output_is_centred_on_first_pixel():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    centre = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    np.testing.assert_array_equal(conv3x3(x, centre, 2), x[:, ::2, ::2])


@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_of_any_order_in_either_mode_are_those_of_xla(stride):
    """The gradient, Hessian-vector products by three compositions, and a third derivative."""
    x, kernel, gradient = draw((5, 4, 3, 2, stride), batch=1)

    def derivatives(convolve):
        def loss(inputs):
            return jnp.sum(jnp.sin(convolve(*inputs, stride)) * gradient)

        def directional(function):
            return lambda inputs: jax.jvp(function, (inputs,), ((x, kernel),))[1]

        def against_itself(inputs):
            slopes, vjp = jax.vjp(jax.grad(loss), inputs)
            return vjp(slopes)

        forward_over_reverse = directional(jax.grad(loss))
        orders = jax.grad(loss), forward_over_reverse, jax.grad(directional(loss)), against_itself
        return [f((x, kernel)) for f in (*orders, directional(forward_over_reverse))]

    ours, theirs = jax.jit(lambda: [derivatives(f) for f in (conv3x3, xla)])()
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (3, 4), (2, None)])
def test_vmap_maps_either_input_and_both_gradients(axes):
    x, kernel, gradient = draw(PATHS["_multiples"])
    mapped = [
        array if axis is None else jnp.stack([array, 2 * array], axis)
        for array, axis in zip((x, kernel), axes, strict=True)
    ]
    for gradient_axis in (None, 1):
        stacked = gradient if gradient_axis is None else jnp.stack([gradient, -gradient], 1)
        ours, theirs = (
            jax.jit(
                jax.vmap(partial(value_and_gradients, stride=1, convolve=f), (*axes, gradient_axis))
            )(*mapped, stacked)
            for f in (conv3x3, xla)
        )
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("x", "channels", "stride"),
    [
        *(((0, 2, 2, 3), 4, 1), ((0, 8, 8, 128), 128, 1), ((0, 9, 9, 32), 32, 2)),
        *(((2, 0, 0, 3), 4, 1), ((2, 8, 8, 0), 4, 1), ((2, 8, 8, 3), 0, 2)),
    ],
)
def test_no_element_is_what_xla_makes_of_it(x, channels, stride):
    x, kernel = jnp.ones(x), jnp.ones((3, 3, x[-1], channels))
    gradient = jnp.ones(xla(x, kernel, stride).shape)
    ours, theirs = (
        jax.jit(partial(value_and_gradients, stride=stride, convolve=f))(x, kernel, gradient)
        for f in (conv3x3, xla)
    )
    for array, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(array, right)


def test_nothing_changes_where_jit_is_disabled(key):
    """As JAX's users debug; a primitive that compiles itself must not call itself."""
    x, kernel = jax.random.normal(key, (2, 4, 4, 3)), jax.random.normal(key, (3, 3, 3, 4))
    norm = BatchNormRelu()
    variables = norm.init(key, jnp.zeros((1, 4, 4, 4)), train=False)

    def loss(x, kernel):
        maps = norm.apply(variables, ij.conv3x3(x, kernel), train=True, mutable=["batch_stats"])[0]
        return (maps**2).sum()

    expected = jax.grad(loss, (0, 1))(x, kernel)
    with jax.disable_jit():
        gradients = jax.grad(loss, (0, 1))(x, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), gradients, expected)


def test_scan_and_remat():
    x, kernel, _ = draw((5, 5, 8, 8, 1))

    def loss(convolve, kernel):
        layer = jax.checkpoint(lambda x, _: (jnp.tanh(convolve(x, kernel / 9)), None))
        return lax.scan(layer, x, None, length=3)[0].sum()

    ours, theirs = (jax.jit(jax.grad(partial(loss, f)))(kernel) for f in (conv3x3, xla))
    assert_close([ours], [theirs])


@pytest.mark.parametrize(
    "size", [PATHS[name] for name in PATHS if name != "_input_gradient_by_phases"]
)
def test_several_in_a_row_are_each_computed_once(size):
    """Evaluation is such a row; where XLA fused a sum into each of its uses, it grew by powers."""
    height, width, channels, _, _ = size
    x = jnp.zeros((2, height, width, channels))
    kernel = jnp.zeros((3, 3, channels, channels))

    def operations(layers):
        def row(x, kernel):
            for _ in range(layers):
                x = jax.nn.relu(2 * our_paths(x, kernel) + 1)
            return x

        program = jax.jit(row, compiler_options=cpu_compiler_options())
        return program.lower(x, kernel).compile().cost_analysis()["flops"]

    assert operations(3) < 3.2 * operations(1)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from interflow_jax import conv3x3

step = jax.value_and_grad(lambda x, kernel: jnp.sin(conv3x3(x, kernel)).sum(), argnums=(0, 1))
batch, all_alike = P("batch"), P()
for size, channels in ((6, 128), (2, 8)):
    x = jax.random.normal(jax.random.key(0), (8, size, size, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, channels))
    alone = jax.jit(step)(x, kernel)

    def check(other):
        assert other[1][0].sharding.is_equivalent_to(NamedSharding(mesh, batch), 4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 2e-2), alone, other)

    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(kind,))
        split = jax.device_put(x, NamedSharding(mesh, batch))
        whole = jax.device_put(kernel, NamedSharding(mesh, all_alike))
        with jax.set_mesh(mesh):
            check(jax.jit(step)(split, whole))

    for check_vma in (True, False):  # checked, JAX itself sums the gradient of what is not split

        @jax.jit
        @jax.shard_map(
            mesh=mesh,
            in_specs=(batch, all_alike),
            out_specs=(all_alike, (batch, all_alike)),
            check_vma=check_vma,
        )
        def mapped(x, kernel):
            loss, (x_gradient, kernel_gradient) = step(x, kernel)
            if not check_vma:
                kernel_gradient = jax.lax.psum(kernel_gradient, "batch")
            return jax.lax.psum(loss, "batch"), (x_gradient, kernel_gradient)

        check(mapped(split, whole))
"""


def test_sharded_over_eight_devices(on_cpu_devices):
    """By XLA, on meshes of either kind, and by shard_map."""
    on_cpu_devices(8, SHARDED)


@pytest.mark.parametrize("path", ["_winograd", "_dense"])
def test_gpus_and_tpus_get_the_plain_convolution(path):
    *arrays, stride = *draw(PATHS[path]), 1
    step = jax.jit(partial(value_and_gradients, convolve=our_paths), static_argnums=3)
    for platforms in (("cuda",), ("tpu",), ("cpu",), ("cpu", "tpu")):
        text = step.trace(*arrays, stride).lower(lowering_platforms=platforms).as_text()
        assert ("stablehlo.convolution" in text) == (platforms != ("cpu",)), platforms
        assert ("stablehlo.dot_general" in text) == ("cpu" in platforms), platforms


@pytest.mark.parametrize(
    ("x", "kernel", "stride", "named"),
    [
        ((1, 4, 4, 2), (3, 3, 2, 2), 3, "stride is 3"),
        ((1, 4, 4, 2), (5, 5, 2, 2), 1, "(5, 5, 2, 2)"),
        ((1, 4, 4, 2), (3, 3, 4, 2), 1, "(3, 3, 4, 2)"),
        ((4, 4, 2), (3, 3, 2, 2), 1, "(4, 4, 2)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(x, kernel, stride, named):
    with pytest.raises(ValueError, match="conv3x3 takes") as error:
        conv3x3(jnp.zeros(x), jnp.zeros(kernel), stride)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("x", "kernel"),
    [("uint8", "uint8"), ("float32", "bfloat16"), ("int32", "float32"), ("complex64",) * 2],
)
def test_dtypes_that_do_not_fit_are_named(x, kernel):
    with pytest.raises(
        ValueError, match=f"{x} and kernel {kernel}; conv3x3 takes the same floating"
    ):
        conv3x3(jnp.zeros((1, 4, 4, 2), x), jnp.zeros((3, 3, 2, 2), kernel))
