"""Takes a finished run away as one file: a program, or its parameters.

The program needs jax and flatbuffers alone.

python -m experiments.export --run=runs/fashion_mini/S7/seed0 --out=model.stablehlo
python -m experiments.export --run=runs/fashion_mini/S7/seed0 --out=model.safetensors \\
    --format=safetensors

stablehlo    uint8 images in, probabilities out, for any batch size; FILE.json beside it has the
             class names, the digest, and how the file came to be. docs/depth.md shows how to run it
safetensors  the parameters, the run's result as metadata; ij.load_safetensors opens it
"""

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

import interflow_jax as ij
from experiments.cli import configuration
from experiments.runs import machine
from experiments.runs.files import writable, write_whole
from interflow_jax.checkpoints import fingerprint
from interflow_jax.export import DEFAULT_PLATFORMS, PLATFORMS, to_safetensors, to_stablehlo


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _flags(arguments)
    out = Path(given.out)
    try:
        if out.is_dir():
            raise ValueError(f"--out={out} is a folder; give a file")
        writable(out.parent)
        run = ij.load_run(given.run)
        if given.branches is not None:
            if not 1 <= given.branches <= len(run.labels):
                most = len(run.labels)
                raise ValueError(f"--branches={given.branches}: choose 1 to {most}, the run's")
            run = run.cut(given.branches)
        if given.format == "safetensors":
            _write(out, to_safetensors(run))
            return 0
        platforms = given.platforms or DEFAULT_PLATFORMS
        program = to_stablehlo(
            *(run.model, run.variables, run.preprocessing, run.image_shape, platforms),
            supervised=run.supervised,
        )
        command = shlex.join(["python", "-m", "experiments.export", *arguments])
        about = {"command": command, **_about(run, program, platforms)}
        _write(out, program)
        _write(Path(f"{out}.json"), (json.dumps(about, indent=1) + "\n").encode())
        return 0
    except (ValueError, OSError) as error:
        print(f"export: error: {error}", file=sys.stderr)
        return 2


def _about(run: ij.TrainedRun, program: bytes, platforms: tuple[str, ...]) -> dict[str, Any]:
    """What is written beside a program: how to use it, and how it was made."""
    images, classes = ", ".join(map(str, run.image_shape)), len(run.class_names)
    return {
        "input": f"uint8 [batch, {images}]",
        "outputs": [
            f"probabilities, float32 [batch, {classes}]",
            f"those of each branch alone, float32 [batch, {len(run.labels)}, {classes}]",
        ],
        "image_shape": run.image_shape,
        "class_names": run.class_names,
        "branches": run.labels,
        "platforms": platforms,
        "sha256": hashlib.sha256(program).hexdigest(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        "fingerprint": fingerprint(run.variables["params"]),
        "versions": machine.versions(),
        "run": run.result,
    }


def _write(file: Path, content: bytes) -> None:
    write_whole(file, content)
    print(f"wrote {file}, {len(content) / 1e6:.2f} MB")


def _flags(arguments: list[str]) -> Any:
    flags = configuration.parser("export", __doc__ or "")
    flags.add_argument("--run", required=True, help="folder of a finished run")
    flags.add_argument("--out", required=True, help="the file to write")
    flags.add_argument("--branches", type=int, help="cut the network after its n-th branch")
    flags.add_argument(
        "--platforms",
        type=configuration.names,
        help=f"of a program, from {', '.join(PLATFORMS)} (default: {','.join(DEFAULT_PLATFORMS)})",
    )
    kinds = ("stablehlo", "safetensors")
    flags.add_argument(
        "--format", choices=kinds, default=kinds[0], help="above (default: stablehlo)"
    )
    given = flags.parse_args(arguments)
    for platform in given.platforms or ():
        if platform not in PLATFORMS:
            flags.error(f"--platforms={platform}: choose from {', '.join(PLATFORMS)}")
    if given.platforms and given.format != "stablehlo":
        flags.error(f"--platforms with --format={given.format}: only a program has platforms")
    return given


if __name__ == "__main__":
    sys.exit(main())
