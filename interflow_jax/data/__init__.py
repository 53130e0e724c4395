"""Labelled images: datasets by name, in arrays, in folders."""

from interflow_jax.data.arrays import from_arrays
from interflow_jax.data.dataset import Dataset
from interflow_jax.data.folders import from_folder
from interflow_jax.data.recipes import load

__all__ = ["Dataset", "from_arrays", "from_folder", "load"]
