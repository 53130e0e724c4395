"""How far gradients move every layer, with and without Interflow: relative steps and norms.

python -m experiments.gradients
"""

import json
import shlex
import sys
from pathlib import Path

from experiments.sweep import commands, record, work
from experiments.tables import gradients, pictures, presets
from interflow_jax.cli import charts
from interflow_jax.cli.config import as_flag
from interflow_jax.cli.files import write_whole
from interflow_jax.cli.folder import RunFolder
from interflow_jax.cli.machine import versions_line
from interflow_jax.cli.main import guarded
from interflow_jax.cli.parser import Parser, add_config, integers, names
from interflow_jax.ops import memory


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.gradients", *arguments])
    return guarded("gradients", command, lambda: _body(arguments, command))


def _body(arguments: list[str], command: str) -> int:
    flags = vars(_parser().parse_args(arguments))
    depths, methods, seeds, name = map(flags.pop, ("depths", "methods", "seeds", "name"))
    epochs = sorted(flags.pop("epochs"))
    base = Path(flags.pop("out")) / pictures.stem("gradients", name or "")
    preset, dataset = flags.pop("preset"), flags.pop("dataset")
    # Without a learning rate drop, a shorter run is the beginning of a longer one.
    first = presets.base(preset, dataset, **{"drop_after": 1.0} | flags)
    axes = {"depth": depths, "method": methods, "epochs": epochs, "seed": seeds}
    runs = [commands.placed(run, base / "runs") for run in presets.grid(first, **axes)]
    folders = [RunFolder(run.folder()) for run in runs]
    todo = record.unfinished(runs, record.read(base))
    done = (each for run, each in zip(runs, folders, strict=True) if run not in todo)
    if bare := [each for each in done if not each.has_checkpoints()]:
        raise ValueError(
            f"{len(bare)} finished run(s) without the parameters that they trained, as "
            f"{bare[0].path}: move {base} away to train them anew, or give a --name"
        )
    if work.carry_out("Gradients by layer", runs, base):
        return 1
    result, count = folders[0].result() or {}, len(epochs) * len(seeds)
    networks = [runs[start : start + count] for start in range(0, len(runs), count)]
    values = first.changes().items()
    protocol = " ".join(f"--{name}={as_flag(value)}" for name, value in values)
    report = {
        "command": command,
        "name": name,
        "dataset": dataset,
        "protocol": f"{protocol}. {result['device']}. {versions_line(result['versions'])}",
        "networks": list(map(gradients.measure, networks)),
    }
    write_whole(Path(f"{base}.json"), json.dumps(report, indent=1) + "\n")
    figure, shows = gradients.picture(report)
    charts.save(figure, Path(f"{base}.png"))
    text = gradients.text(report, {"file": f"{base.name}.png", "shows": shows})
    write_whole(Path(f"{base}.md"), text)
    print(text)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "gradients",
        "Trains networks at their first learning rate and reports, for every convolution, the\n"
        "norm of the gradient of the loss that it minimises, and by what fraction of its own norm\n"
        "a step without momentum moves the kernel: at initialisation and after so many epochs,\n"
        f"mean over up to {gradients.BATCHES} batches, by seed. Writes OUT/gradients.md, .json\n"
        "and .png, of runs in OUT/gradients. Finished runs are skipped.",
        prefix="python -m experiments.",
    )
    add = parser.add_argument
    for flag, parse, default in (
        ("--dataset", str, "cifar10"),
        ("--depths", integers, "13,60,100"),
        ("--epochs", integers, "1,12"),
        ("--methods", names, "Normal,S1"),
        ("--seeds", integers, "0,1,2"),
    ):
        add(flag, type=parse, default=parse(default), help=f"default: {default}")
    about = "but for its epochs (default: end)"
    add("--preset", default="end", choices=presets.PRESETS, help=about)
    add("--out", default="runs", help="folder of the report (default: runs)")
    add("--name", help="of a record beside the first: OUT/gradients-NAME.md, ...")
    # Always the paper's network, from its own initial parameters.
    decided = ("method", "dataset", "seed", "seeds", "depth", "epochs", "out", "list_layers")
    decided += ("backbone", "backbone_options", "pretrained", "frozen", "pool", "recipe")
    decided += ("coordinator", "processes", "process")
    add_config(parser, decided, "the preset's, else the paper's")
    return parser


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
