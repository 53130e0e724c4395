"""`interflow explore` from a checkout: python -m experiments.explore."""

from interflow_jax.cli import explore as main
from interflow_jax.cli.main import console

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(console("explore"))
