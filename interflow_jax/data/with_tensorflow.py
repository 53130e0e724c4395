"""The jobs that need TensorFlow, run in a child process by `interflow_jax.data.tfds`.

    python -m interflow_jax.data.with_tensorflow JOB ARGUMENTS

The jobs are `prepare` and `decode`. Progress goes to standard error. A failure is the last line on
standard output, with exit status 1.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from interflow_jax.data import pictures


def prepare(name: str, data_dir: str, download_dir: str) -> None:
    """Downloads and prepares a dataset in the array_record format."""
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record", try_gcs=False)
    config = tfds.download.DownloadConfig(manual_dir=str(Path(download_dir) / "manual"))
    builder.download_and_prepare(download_dir=download_dir, download_config=config)


def decode(folder: str, split: str, target: str, resize: Any, *shape: str) -> None:
    """Decodes a split to images.npy (uint8) and labels.npy (int32) in a new folder, the target."""
    place, (height, width, channels) = Path(target), map(int, shape)
    builder: Any = tfds.builder_from_directory(folder)
    count = builder.info.splits[split].num_examples
    # One file after another, so that the order is that of an array_record folder.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    # Pillow decodes, as it does an array_record folder's images, to the same pixels.
    encoded = {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_dataset(
        split=split, shuffle_files=False, read_config=config, decoders=encoded
    )
    with tempfile.TemporaryDirectory(dir=place.parent) as draft:
        arrays = Path(draft) / "arrays"
        arrays.mkdir()
        whole = (count, height, width, channels)
        images = np.lib.format.open_memmap(arrays / "images.npy", "w+", np.uint8, whole)
        labels = np.empty(count, np.int32)
        for index, example in enumerate(tfds.as_numpy(examples)):
            with pictures.opened(io.BytesIO(example["image"]), f"example {index}") as picture:
                images[index] = pictures.fit(picture, whole[1:], resize=resize)
            labels[index] = example["label"]
        images.flush()
        np.save(arrays / "labels.npy", labels)
        try:
            arrays.rename(place)
        except OSError:
            if not place.exists():  # else another process was faster
                raise


if __name__ == "__main__":
    try:
        {"prepare": prepare, "decode": decode}[sys.argv[1]](*sys.argv[2:])
    except (Exception, KeyboardInterrupt) as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}")
        sys.exit(1)
