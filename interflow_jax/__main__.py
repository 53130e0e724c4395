"""`python -m interflow_jax COMMAND`, the same program as the console script `interflow`."""

import sys

from interflow_jax.cli.main import console

sys.exit(console())
