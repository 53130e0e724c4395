"""Labelled images: datasets by name, in arrays, in folders."""

from interflow_jax.data.arrays import from_arrays
from interflow_jax.data.datasets import Dataset, load
from interflow_jax.data.folders import from_folder

__all__ = ["Dataset", "from_arrays", "from_folder", "load"]
