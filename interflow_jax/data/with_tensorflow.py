"""The jobs that need TensorFlow, run in a child process by `tfds_folders`.

    python -m interflow_jax.data.with_tensorflow prepare NAME DATA_DIR DOWNLOAD_DIR
    python -m interflow_jax.data.with_tensorflow decode FOLDER SPLIT HEIGHT WIDTH CHANNELS TARGET

Progress goes to standard error. A failure is the last line on standard output, with exit status 1.
"""

import os
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


def decode(folder: str, split: str, height: str, width: str, channels: str, target: str) -> None:
    """Decodes a split to images.npy (uint8) and labels.npy (int32) in a new folder `target`."""
    builder: Any = tfds.builder_from_directory(folder)
    shape = (int(height), int(width), int(channels))
    count = builder.info.splits[split].num_examples
    # One file after another, so that the order is that of an array_record folder.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    examples = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as draft:
        arrays = Path(draft) / "arrays"
        arrays.mkdir()
        images = np.lib.format.open_memmap(arrays / "images.npy", "w+", np.uint8, (count, *shape))
        labels = np.empty(count, np.int32)
        for index, example in enumerate(tfds.as_numpy(examples)):
            images[index] = pictures.fit(example["image"], shape)
            labels[index] = example["label"]
        images.flush()
        np.save(arrays / "labels.npy", labels)
        try:
            arrays.rename(target)
        except OSError:
            if not Path(target).exists():  # else another process was faster
                raise


def _import_tensorflow_quietly() -> None:
    """Mutes TensorFlow's greeting on stderr, printed below Python before it can be disabled."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


if __name__ == "__main__":
    try:
        _import_tensorflow_quietly()
        {"prepare": prepare, "decode": decode}[sys.argv[1]](*sys.argv[2:])
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(str(error).split()) or "no reason given"
        print(f"{type(error).__name__}: {reason}")
        sys.exit(1)
