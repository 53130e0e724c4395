"""Makes `fashion_mini.npz`, the sample of Fashion-MNIST that ships with interflow_jax.

    python -m interflow_jax.data.fashion_mini.make --data_dir=FOLDER

takes the first 600 training and 100 test images of each class, in the order of the original files,
from any prepared tfds Fashion-MNIST. The same images give the same bytes.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_datasets.core import hashing

from interflow_jax.data import recipes, splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_dir", help="folder of prepared tfds datasets")
    default = Path(__file__).with_name("fashion_mini.npz")
    parser.add_argument("--out", type=Path, default=default, help="file to write")
    flags = parser.parse_args()
    dataset = recipes.load("fashion_mnist", flags.data_dir)
    arrays: dict[str, Any] = {"class_names": np.array(dataset.class_names)}
    for name, split, per_class in (("train", dataset.train, 600), ("test", dataset.test, 100)):
        order = original_order(name, len(split))
        labels = splits.into_memory(split).labels[order]
        first = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)])
        images, labels = split.read(order[np.sort(first)])
        arrays |= {f"{name}_images": images, f"{name}_labels": labels.astype(np.uint8)}
    np.savez_compressed(flags.out, **arrays)
    print(f"{flags.out}: {flags.out.stat().st_size / 1e6:.2f} MB")


def original_order(split: str, size: int) -> np.ndarray:
    """Where tfds put the examples of the original files, in their order.

    tfds sorts a split by a hash of each example's key, here its number in the original file, salted
    with the split's name.
    """
    hasher = hashing.Hasher(split)
    keys = [hasher.hash_key(number) for number in range(size)]
    return np.argsort(sorted(range(size), key=keys.__getitem__))


if __name__ == "__main__":
    main()
