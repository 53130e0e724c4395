"""`interflow run` from a checkout: python -m experiments.run."""

from interflow_jax.cli import run as main
from interflow_jax.cli.main import console

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(console("run"))
