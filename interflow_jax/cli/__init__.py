"""The commands, callable from Python too: `interflow_jax.cli.run(["--method=S1", "--epochs=1"])`.

Each takes a list of flags and returns its exit status, 0 for success; see `interflow --help`.
"""

from functools import partial

from interflow_jax.cli.main import COMMANDS
from interflow_jax.cli.main import main as _main

run, predict, exits, explore, export, prepare = (partial(_main, name) for name in COMMANDS)
