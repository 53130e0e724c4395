"""The sample comes from tfds's files in the order of the originals."""

import numpy as np
from tensorflow_datasets.core import hashing, shuffle

from interflow_jax.data.fashion_mini.make import original_order


def test_the_original_order_undoes_tfds_shuffling(tmp_path):
    """Against the shuffler with which tfds itself prepares a split."""
    shuffler = shuffle.Shuffler(tmp_path, hash_salt="train", disable_shuffling=False)
    for number in range(500):
        shuffler.add(number, str(number).encode())
    prepared = [int(value) for _, value in shuffler]
    assert prepared != sorted(prepared)
    order = original_order("train", 500)
    np.testing.assert_array_equal(np.array(prepared)[order], np.arange(500))
    assert hashing.Hasher("train").hash_key(0) != hashing.Hasher("test").hash_key(0)
