"""`interflow export` from a checkout: python -m experiments.export."""

from interflow_jax.cli import export as main
from interflow_jax.cli.main import console

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(console("export"))
