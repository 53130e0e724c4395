"""How far gradients move every layer, with and without Interflow: relative steps and norms.

python -m experiments.gradients
"""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cli import configuration
from experiments.cli.configuration import HOSTS, Configuration, integers, names
from experiments.runs.files import write_whole
from experiments.sweep import work
from experiments.sweep.planning import plan
from experiments.sweep.record import Record
from experiments.tables import gradients, pictures, presets
from experiments.tables.report import protocol
from interflow_jax.ops import memory


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.gradients", *arguments])
    parser = configuration.parser(
        "gradients",
        "Trains networks at their first learning rate and reports, for every convolution, the\n"
        "norm of the gradient of the loss that it minimises, and by which part of its own norm a\n"
        "step without momentum moves the kernel: at initialisation and after so many epochs, mean\n"
        f"over up to {gradients.BATCHES} batches, by seed. Writes OUT/gradients.md, .json and\n"
        ".png, of runs in OUT/gradients. Finished runs are skipped.",
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
    add("--out", default="results", help="folder of the report (default: results)")
    add("--name", help="of a record beside the first: OUT/gradients-NAME.md, ...")
    group = parser.add_argument_group("flags of experiments.run, in place of the preset's values")
    # Always the paper's network, from its own initial parameters.
    decided = ("method", "dataset", "seed", "seeds", "depth", "epochs", "out", *HOSTS)
    decided += ("backbone", "backbone_options", "pretrained", "frozen", "pool")
    configuration.add_flags(group, decided, presets.DECIDED | {"drop_after": "1.0, no drop"})
    flags = vars(parser.parse_args(arguments))
    depths, methods, seeds, name = map(flags.pop, ("depths", "methods", "seeds", "name"))
    epochs = sorted(flags.pop("epochs"))
    base = Path(flags.pop("out")) / pictures.stem("gradients", name or "")
    # Without a learning rate drop, a shorter run is the beginning of a longer one.
    values: dict[str, Any] = presets.flags(flags.pop("preset"), flags["dataset"])
    values |= {"drop_after": 1.0} | flags

    def body() -> int:
        networks = [
            Configuration(**values | {"method": method, "depth": depth})
            for depth in depths
            for method in methods
        ]
        groups = [
            [
                [plan(replace(network, epochs=each, seed=seed), base / "runs") for seed in seeds]
                for each in epochs
            ]
            for network in networks
        ]
        runs = [run for group in groups for by_seed in group for run in by_seed]
        record = Record(base)
        bare = [run for run in record.finished(runs) if not run.folder.has_checkpoints()]
        if bare:
            raise ValueError(
                f"{len(bare)} finished run(s) without the parameters that they trained, as "
                f"{bare[0].folder.path}: delete {base} to train them anew, or give a --name"
            )
        if work.carry_out("Gradients by layer", runs, record, base):
            return 1
        results = pd.DataFrame([record.result(run) for run in runs])
        report = {
            "command": command,
            "name": name,
            "dataset": flags["dataset"],
            "protocol": protocol([run.flags for run in runs], results),
            "networks": [gradients.measure(group) for group in groups],
        }
        write_whole(Path(f"{base}.json"), json.dumps(report, indent=1) + "\n")
        (shown,) = pictures.save(gradients.picture(base.name, report), base.parent)
        text = gradients.text(report, shown)
        write_whole(Path(f"{base}.md"), text)
        print(text)
        return 0

    return work.exit_status("gradients", command, body)


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
