"""Times the three passes of a 3x3 convolution size by size: XLA's, our paths, and oneDNN."""

import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
from jax import Array

import interflow_jax as ij
from experiments.timing.report import origin
from experiments.timing.turns import processor_time
from interflow_jax.ops import cpu_convolution, onednn, xla_convolution
from interflow_jax.steps import BATCH_SIZE

REPETITION_SECONDS = 0.01  # a repetition is as many calls as fit, at least one
SECONDS = 0.8  # of repetitions of a pass, by all of them together, but ...
DTYPE = "float32"
FEWEST, MOST = 3, 100  # ... at least and at most so many


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


PASSES = ("forward", "input gradient", "kernel gradient")
LIBRARIES = {"xla": "XLA", "ours": "ours", "onednn": "oneDNN"}


def _programs(name: str, shapes: list[tuple[int, ...]], stride: int) -> dict[str, Any]:
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

    inputs = [jax.ShapeDtypeStruct(shape, DTYPE) for shape in shapes]
    return {
        library: jax.jit(partial(run, convolve), compiler_options=ij.cpu_compiler_options())
        .lower(*inputs)
        .compile()
        for library, convolve in ways.items()
    }


def measure(size: Size) -> dict[str, Any]:
    """Times the passes of one size, the libraries taking turns: a row of convolutions.json.

    Its `way` is the path of our forward pass, `choice` what `conv3x3` takes, and its figures are
    those of `figure`.
    """
    pixels, channels_in, channels_out, stride = size
    outputs = -(-pixels // stride)
    input_shape = (BATCH_SIZE, pixels, pixels, channels_in)
    kernel_shape = (3, 3, channels_in, channels_out)
    output_shape = (BATCH_SIZE, outputs, outputs, channels_out)
    shapes = [input_shape, kernel_shape, output_shape]
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = list(map(jax.random.normal, keys, shapes))
    way = cpu_convolution.path(input_shape, kernel_shape, stride).__name__
    row = {
        "size": str(size),
        **size._asdict(),
        "way": "xla" if way == "forward" else way.strip("_").replace("_", " "),
        "passes": {},
    }
    for name in PASSES:
        programs = _programs(name, shapes, stride)
        shape = input_shape, kernel_shape, stride, DTYPE
        pays = onednn.pays(name.replace(" ", "_"), *shape)
        row["passes"][name] = {
            **_alternate(programs, arrays),
            "compiled_to": _contents(programs["ours"]),
            "choice": "onednn" if pays and "onednn" in programs else "ours",
        }
    return row


def _alternate(programs: dict[str, jax.stages.Compiled], arrays: list[Array]) -> dict[str, Any]:
    """The figure of each program's repetitions, in milliseconds per call."""

    def milliseconds(program: jax.stages.Compiled, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(program(*arrays))
        return (time.perf_counter() - start) / calls * 1e3

    calls, repetitions = {}, {name: [] for name in programs}
    for name, program in programs.items():
        milliseconds(program, 1)  # the first call still allocates
        calls[name] = max(1, int(REPETITION_SECONDS * 1e3 / milliseconds(program, 1)))
    start = time.perf_counter()
    count = 0
    while count < FEWEST or (time.perf_counter() - start < SECONDS and count < MOST):
        for name, program in programs.items():
            stolen, _ = processor_time()
            duration = milliseconds(program, calls[name])
            repetitions[name].append((duration, processor_time()[0] > stolen))
        count += 1
    figures = {}
    for name, durations in repetitions.items():
        figures[f"{name}_ms"], figures[f"{name}_repetitions"] = figure(durations)
    return figures


def figure(repetitions: list[tuple[float, bool]]) -> tuple[float, int]:
    """The median of the undisturbed repetitions and their number; without any, the minimum and 0.

    A repetition is a time, and whether a hypervisor took some of it.
    """
    undisturbed = [duration for duration, disturbed in repetitions if not disturbed]
    return median(undisturbed) if undisturbed else min(repetitions)[0], len(undisturbed)


def _contents(compiled: jax.stages.Compiled) -> str:
    """The convolutions and matrix products in it, as "9 products"; without either, "loops"."""
    opcodes = Counter(re.findall(r" = \S+ (convolution|dot)\(", compiled.as_text() or ""))
    nouns = (("convolution", opcodes["convolution"]), ("product", opcodes["dot"]))
    words = [f"{count} {noun}{'s' * (count > 1)}" for noun, count in nouns if count]
    return ", ".join(words) or "loops"


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
        times = []
        for library in LIBRARIES:
            if f"{library}_ms" in one:
                mark = "" if one[f"{library}_repetitions"] else "*"
                bold = "**" * (library == one["choice"])
                times.append(f"{bold}{one[f'{library}_ms']:.2f}{mark}{bold}")
            else:
                times.append("-")
        cells += [", ".join(times), f"{one['xla_ms'] / one[one['choice'] + '_ms']:.2f}"]
    return f"| {' | '.join(cells)} |"


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    return f"""\
# The 3x3 convolution on CPU, pass by pass

{origin(report)}; oneDNN {onednn.onednn_version() or "not installed"}; {DTYPE}, batch {BATCH_SIZE}.
XLA's convolution, our paths and oneDNN take turns, with `ij.cpu_compiler_options()`;
medians of the repetitions in which the hypervisor took no time away (*: there were none;
their minimum). Bold is what `ij.conv3x3` takes.
A size is the input's channels, map and stride; the way is that of our forward pass.

{HEAD}
""" + "".join(f"{table_row(row)}\n" for row in report["rows"])
