r"""Takes a finished run away as one file: a program, or its parameters.

The program needs jax and flatbuffers alone.

interflow export --run=runs/fashion_mini/S7/seed0 --out=model.stablehlo
interflow export --run=runs/fashion_mini/S7/seed0 --out=model.safetensors --format=safetensors
interflow export --run=runs/fashion_mini/S7/seed0 --out=small.stablehlo --branches=2 --refit

stablehlo    uint8 images in, probabilities out, for any batch size; FILE.json beside it has the
             class names, the digest, and how the file came to be; classify.py beside them runs it
             on pictures: python classify.py cat.jpg (jax, flatbuffers, Pillow and numpy alone)
safetensors  the parameters, the run's result as metadata; ij.load_safetensors opens it

A cut network is measured on the test split, where the data are here; nothing is downloaded.
"""

import hashlib
import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from interflow_jax.checkpoints import fingerprint
from interflow_jax.cli import data, machine
from interflow_jax.cli.files import output_file, write_whole
from interflow_jax.cli.parser import Parser, add_data_dir, add_run, names
from interflow_jax.data import recipes
from interflow_jax.data.dataset import PreparationError
from interflow_jax.data.splits import one_line
from interflow_jax.export import DEFAULT_PLATFORMS, PLATFORMS, to_safetensors, to_stablehlo
from interflow_jax.saved_run import TrainedRun, load_run

_LOSS = 1.0  # points of accuracy that a cut may lose without a warning
_MEASURED = ("cut_accuracy", "whole_accuracy", "cut_fitted_to", "not_measured")


def main(arguments: list[str]) -> int:
    """Runs the command."""
    given = _flags(arguments)
    out = output_file(given.out)
    if Path(f"{out}.json").name in ("result.json", "config.json") and given.format == "stablehlo":
        raise ValueError(f"--out={given.out}: {out.name}.json beside it is a run's; choose another")
    run = load_run(given.run, given.backbone, given.trust_code)
    measured = ""
    if given.branches is not None:
        run, measured = _cut(run, given)
    if given.format == "safetensors":
        _write(out, to_safetensors(run), measured)
        return 0
    platforms = given.platforms or DEFAULT_PLATFORMS
    program = to_stablehlo(
        run.model,
        run.variables,
        run.preprocessing,
        run.image_shape,
        platforms,
        supervised=run.supervised,
    )
    command = shlex.join(["python", "-m", "interflow_jax", "export", *arguments])
    about = {"command": command, **_about(run, program, platforms)}
    _write(out, program, measured)
    _write(Path(f"{out}.json"), (json.dumps(about, indent=1) + "\n").encode())
    _write_script(out)
    return 0


def _write_script(program: Path) -> None:
    """Writes classify.py for a program, in place of none but its own earlier one."""
    text = (resources.files("interflow_jax.cli") / "classify.py").read_text("utf-8")
    name, first = repr(program.name).encode(), text.partition("\n")[0].encode()
    own = program.with_name(f"classify_{program.stem}.py")
    for file in (program.with_name("classify.py"), own):
        there = file.read_bytes() if file.exists() else first + name
        if there.startswith(first) and name in there:
            _write(file, text.replace('"model.stablehlo"', repr(program.name), 1).encode())
            return
        print(f"{file} is there, and is not this program's: it stays")


def _cut(run: TrainedRun, given: Any) -> tuple[TrainedRun, str]:
    """The cut run, and in words how well it predicts."""
    if not 1 <= given.branches <= len(run.labels):
        most = len(run.labels)
        raise ValueError(f"--branches={given.branches}: choose 1 to {most}, the run's")
    name, size = run.result["dataset"], run.result["image_size"]
    try:
        with data.reading(name):
            dataset = recipes.load(name, given.data_dir, size, run.resize)
            run.check_data(dataset)
            cut = run.cut(given.branches, dataset, given.refit, given.alone)
    except (ImportError, OSError, PreparationError, ValueError) as error:
        if given.refit:
            raise ValueError(f"--refit: {one_line(error)}") from error
        cut = run.cut(given.branches, alone=given.alone)
        cut.result["not_measured"] = one_line(error)
        return cut, f"; accuracy not measured: {one_line(error)}"
    ours, whole = cut.result["cut_accuracy"], cut.result["whole_accuracy"]
    if whole - ours > _LOSS and not (given.refit or given.alone):
        print(
            f"warning: the cut loses {whole - ours:.2f} points; --refit fits a fusion to the "
            "branches that remain, --alone takes the last one's own scores"
        )
    fitted = f", fusion fitted to {cut.result['cut_fitted_to']}" if given.refit else ""
    count = f"{len(dataset.test):,} test images"
    return cut, f"; accuracy {ours:.2f} % of {count}, the whole's {whole:.2f} %{fitted}"


def _about(run: TrainedRun, program: bytes, platforms: tuple[str, ...]) -> dict[str, Any]:
    """What is written beside a program: how to use it, and how it was made."""
    images, classes = ", ".join(map(str, run.image_shape)), len(run.class_names)
    return {
        "input": f"uint8 [batch, {images}]",
        "outputs": [
            f"probabilities, float32 [batch, {classes}]",
            f"those of each branch alone, float32 [batch, {len(run.labels)}, {classes}]",
        ],
        "image_shape": run.image_shape,
        "resize": run.resize,
        "class_names": run.class_names,
        "branches": run.labels,
        "platforms": platforms,
        "sha256": hashlib.sha256(program).hexdigest(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        "fingerprint": fingerprint(run.variables["params"]),
        **{name: run.result[name] for name in _MEASURED if name in run.result},
        "versions": machine.versions(),
        "run": run.result,
    }


def _write(file: Path, content: bytes, measured: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)
    print(f"wrote {file}, {len(content) / 1e6:.2f} MB{measured}")


def _flags(arguments: list[str]) -> Any:
    parser = Parser("export", __doc__ or "")
    add = parser.add_argument
    add_run(parser, "folder of a finished run")
    add("--out", required=True, help="the file to write")
    add("--branches", type=int, help="cut the network after its n-th branch")
    ways = parser.add_mutually_exclusive_group()
    about = "fit a fusion to the branches that remain, on held-out training images if there are any"
    ways.add_argument("--refit", action="store_true", help=about)
    about = "let the last branch that remains predict alone"
    ways.add_argument("--alone", action="store_true", help=about)
    add_data_dir(parser)
    shown = ",".join(DEFAULT_PLATFORMS)
    about = f"of a program, from {', '.join(PLATFORMS)} (default: {shown})"
    add("--platforms", type=names, help=about)
    kinds = ("stablehlo", "safetensors")
    add("--format", choices=kinds, default=kinds[0], help="above (default: stablehlo)")
    given = parser.parse_args(arguments)
    if (given.refit or given.alone) and given.branches is None:
        parser.error("--refit and --alone are for a cut: give --branches, too")
    for platform in given.platforms or ():
        if platform not in PLATFORMS:
            parser.error(f"--platforms={platform}: choose from {', '.join(PLATFORMS)}")
    if given.platforms and given.format != "stablehlo":
        parser.error(f"--platforms with --format={given.format}: only a program has platforms")
    ending = Path(given.out).suffix
    if given.format == "safetensors" and ending == ".stablehlo":
        parser.error(f"--out={given.out}: no program is written with --format=safetensors")
    if given.format == "stablehlo" and ending in (".safetensors", ".onnx"):
        way = "add --format=safetensors" if ending == ".safetensors" else "see docs/depth.md"
        parser.error(f"--out={given.out}: a program is no {ending[1:]} file; {way}")
    return given
