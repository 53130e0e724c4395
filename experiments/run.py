"""Trains and evaluates one of the paper's methods or a baseline: the main command.

python -m experiments.run --method=S7 --dataset=svhn
"""

import shlex
import sys

from experiments.cli import configuration, console
from experiments.runs import hosts, single
from experiments.sweep.work import exit_status
from interflow_jax.ops import memory


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    detect = arguments is None  # a cluster that has started this very process
    arguments = sys.argv[1:] if arguments is None else arguments
    flags = configuration.parse(arguments)
    command = shlex.join(["python", "-m", "experiments.run", *arguments])

    def body() -> int:
        if flags.list_layers:
            single.print_layers(flags)
            return 0
        with hosts.joined(flags, detect):
            folders = single.check(flags)
            trainer, results = None, []
            for seed, folder in folders.items():
                result = hosts.once(folder.result)
                if result is None:
                    trainer = trainer or single.prepare(flags, folders, command)
                    result = single.run(flags, trainer, seed, folder, command)
                print(console.summary(result, folder.path), flush=True)
                results.append(result)
            if len(results) > 1:
                print(console.several(results))
        return 0

    return exit_status("run", command, body)


if __name__ == "__main__":
    memory.keep_freed_memory()
    sys.exit(main())
