"""Times the three passes of a 3x3 convolution, and BatchNorm, size by size: XLA's, ours, oneDNN."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
from jax import Array

import interflow_jax as ij
from experiments.timing.report import origin
from interflow_jax.cli import markdown
from interflow_jax.ops import cpu_convolution, onednn, xla_convolution
from interflow_jax.ops.convolution import Library
from interflow_jax.ops.normalization import BatchNormRelu
from interflow_jax.steps import BATCH_SIZE

SECONDS, FEWEST = 0.8, 3  # of calls of a pass by all libraries together, and at least so many
DTYPE = "float32"


class Size(NamedTuple):
    """A convolution of a batch of square maps."""

    pixels: int  # height and width of the input
    channels_in: int
    channels_out: int
    stride: int = 1

    def __str__(self) -> str:
        alike = self.channels_in == self.channels_out
        channels = f"{self.channels_in}" if alike else f"{self.channels_in}->{self.channels_out}"
        stride = "" if self.stride == 1 else f"/{self.stride}"
        return f"{channels}@{self.pixels}x{self.pixels}{stride}"


SIZES = tuple(
    Size(*numbers)
    for numbers in (
        # The networks of width 1 ...
        *((32, 3, 64), (32, 64, 64), (32, 64, 128, 2), (16, 128, 128), (16, 128, 256, 2)),
        *((8, 256, 256), (8, 256, 512, 2), (4, 512, 512), (2, 512, 512)),
        # ... of a quarter ...
        *((32, 3, 16), (28, 1, 16), (32, 16, 16), (32, 16, 32, 2), (16, 32, 32)),
        *((16, 32, 64, 2), (8, 64, 64), (8, 64, 128, 2), (4, 128, 128), (2, 128, 128)),
        # ... and of an eighth.
        *((32, 3, 8), (28, 1, 8), (32, 8, 8), (28, 8, 8), (28, 8, 16, 2), (16, 16, 16)),
        *((14, 16, 16), (14, 16, 32, 2), (7, 32, 32), (7, 32, 64, 2), (4, 64, 64), (2, 64, 64)),
    )
)

MAPS = tuple(dict.fromkeys((-(-size.pixels // size.stride), size.channels_out) for size in SIZES))

PASSES = ("forward", "input gradient", "kernel gradient")
LIBRARIES = {"xla": "XLA", "ours": "ours", "onednn": "oneDNN"}


def programs(name: str, stride: int) -> dict[str, Callable]:
    """A pass by each library, as functions of the input, the kernel and the output's gradient."""
    ways: dict[str, Callable] = {
        "xla": xla_convolution.forward,
        "ours": partial(ij.conv3x3, library="xla"),
    }
    if onednn.package():
        ways["onednn"] = partial(ij.conv3x3, library="onednn")

    def run(convolve: Callable, x: Array, kernel: Array, gradient: Array) -> Array:
        output, vjp = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
        return (output, *vjp(gradient))[PASSES.index(name)]

    options = ij.cpu_compiler_options()
    return {
        library: jax.jit(partial(run, way), compiler_options=options)
        for library, way in ways.items()
    }


def measure(size: Size) -> dict[str, Any]:
    """Times the passes of one size: a row of convolutions.json.

    Its `way` is the path of our forward pass, `choice` what `conv3x3` takes, and its times are
    medians over calls, in milliseconds.
    """
    pixels, channels_in, channels_out, stride = size
    outputs = -(-pixels // stride)
    input_shape = (BATCH_SIZE, pixels, pixels, channels_in)
    kernel_shape = (3, 3, channels_in, channels_out)
    shapes = [input_shape, kernel_shape, (BATCH_SIZE, outputs, outputs, channels_out)]
    arrays = list(map(jax.random.normal, jax.random.split(jax.random.key(0), 3), shapes))
    way = cpu_convolution.path(input_shape, kernel_shape, stride).__name__
    way = "xla" if way == "forward" else way.strip("_").replace("_", " ")
    passes = {}
    for name in PASSES:
        times = _alternate(programs(name, stride), arrays)
        pays = cpu_convolution.onednn_pays(
            name.replace(" ", "_"), input_shape, kernel_shape, stride
        )
        passes[name] = {**times, "choice": "onednn" if pays and "onednn_ms" in times else "ours"}
    return {"size": str(size), **size._asdict(), "way": way, "passes": passes}


def measure_norm(pixels: int, channels: int) -> dict[str, Any]:
    """Times BatchNorm with ReLU, forward and gradient together, of a batch of square maps."""
    shape = (BATCH_SIZE, pixels, pixels, channels)
    x, gradient = (jax.random.normal(jax.random.key(seed), shape) for seed in range(2))

    def run(library: Library, x: Array, gradient: Array) -> tuple:
        layer = BatchNormRelu(library=library)
        variables = layer.init(jax.random.key(0), x, True)

        def apply(params: dict, x: Array) -> Array:
            own = {**variables, "params": params}
            return layer.apply(own, x, True, mutable=["batch_stats"])[0]

        y, vjp = jax.vjp(apply, variables["params"], x)
        return y, vjp(gradient)

    libraries: dict[str, Library] = {"xla": "xla"}
    if onednn.package():
        libraries["package"] = "auto"
    programs = {
        name: jax.jit(partial(run, library), compiler_options=ij.cpu_compiler_options())
        for name, library in libraries.items()
    }
    return {"size": f"{channels}@{pixels}x{pixels}", **_alternate(programs, [x, gradient])}


def _alternate(programs: dict[str, Callable], arrays: list[Array]) -> dict[str, float]:
    """The median time of a call of each program; they take turns."""
    for program in programs.values():
        for _ in range(2):  # the first compiles, and the first of all still allocates
            jax.block_until_ready(program(*arrays))
    times = {name: [] for name in programs}
    end, count = time.perf_counter() + SECONDS, 0
    while count < FEWEST or time.perf_counter() < end:
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            times[name].append((time.perf_counter() - start) * 1e3)
        count += 1
    return {f"{name}_ms": median(durations) for name, durations in times.items()}


HEAD = (
    f"| {'size':<16} | {'way':<13} |"
    + "".join(f" {name}: {', '.join(LIBRARIES.values())}, ms | XLA / choice |" for name in PASSES)
    + "\n| --- | --- |"
    + " ---: | ---: |" * len(PASSES)
)


def table_row(row: dict[str, Any]) -> str:
    """One size as a row of the report's table."""
    cells = [f"{row['size']:<16}", f"{row['way']:<13}"]
    for one in row["passes"].values():
        times = {library: one.get(f"{library}_ms") for library in LIBRARIES}
        shown = {name: "-" if each is None else f"{each:.2f}" for name, each in times.items()}
        shown[one["choice"]] = f"**{shown[one['choice']]}**"
        cells += [", ".join(shown.values()), f"{times['xla'] / times[one['choice']]:.2f}"]
    return f"| {' | '.join(cells)} |"


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    norms = [[row["size"], row["xla_ms"], row.get("package_ms")] for row in report["norms"]]
    norms = [[*row, row[1] / row[2] if row[2] else None] for row in norms]
    head = ["size", "XLA, ms", "interflow_jax_onednn, ms", "XLA / it"]
    return (
        f"""\
# The 3x3 convolution on CPU, pass by pass

{origin(report)}; oneDNN {onednn.onednn_version() or "not installed"}; {DTYPE}, batch {BATCH_SIZE}.
XLA's convolution, our paths and oneDNN take turns, with `ij.cpu_compiler_options()`;
medians over calls. Bold is what `ij.conv3x3` takes.
A size is the input's channels, map and stride; the way is that of our forward pass.

{HEAD}
"""
        + "".join(f"{table_row(row)}\n" for row in report["rows"])
        + "\n## BatchNorm with ReLU, forward and gradient\n\n"
        + "\n".join(markdown.table(head, norms))
    )
