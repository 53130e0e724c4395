"""`interflow predict` from a checkout: python -m experiments.predict."""

from interflow_jax.cli import predict as main
from interflow_jax.cli.main import console

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(console("predict"))
