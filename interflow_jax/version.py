"""The version, readable without importing JAX."""

__version__ = "0.2.0.dev0"
