"""`interflow exits` from a checkout: python -m experiments.exits."""

from interflow_jax.cli import exits as main
from interflow_jax.cli.main import console

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(console("exits"))
