"""`interflow prepare` from a checkout: python -m experiments.prepare."""

from interflow_jax.cli import prepare as main
from interflow_jax.cli.main import console

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(console("prepare"))
