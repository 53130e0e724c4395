"""A set that no memory need hold: 20,000 JPEGs of photographs' size, prepared by tfds."""

import io
import json
import tarfile

import numpy as np
import pytest

from experiments.timing import reading
from interflow_jax.data import tfds_folders
from tests.data.test_tfds_folders import PREPARE, in_a_child

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
EXAMPLES, DIFFERENT = 20_000, 200

# Start, then 20 batches of training and of evaluation, of so many examples.
STREAM = """
import json, resource, sys, time
from functools import partial
import jax
from interflow_jax.data import batches, datasets, preprocessing, splits

data_dir, size, readers = sys.argv[1], *map(int, sys.argv[2:])
start = time.monotonic()
dataset = datasets.load("tf_flowers", data_dir, 224)
train = splits.take(dataset.train, size)
keys = preprocessing.epoch_keys(0, 0)
order = batches.training_order(keys, len(train))
steps = batches.chunks(0, 20, 1)
draws = partial(preprocessing.crop_draws, keys, 64)
arrive = []
whole = batches.evaluation_order(1280, 64), dataset.test, None
for order, split, draws in ((order, train, draws), whole):
    source = batches.streamed_batches(
        split, order, steps, batches.device_mesh(), 64, draws, readers)
    for _, window in source:
        assert window.images.shape == (1, 64, 224, 224, 3)
        arrive.append(time.monotonic())
print(json.dumps({"start_seconds": arrive[0] - start,
                  "images_per_second": 64 * 19 / (arrive[19] - arrive[0]),
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """tf_flowers, from an archive in its original form of JPEGs of about 400x350 pixels."""
    folder = tmp_path_factory.mktemp("flowers")
    (original,) = tfds_folders.originals("tf_flowers")
    download_dir = tfds_folders.download_dir("tf_flowers", folder)
    archive = download_dir / "manual" / original.file_name
    archive.parent.mkdir(parents=True)
    generator = np.random.default_rng(0)
    jpegs = []
    for _ in range(DIFFERENT):
        content = io.BytesIO()
        reading.photograph(generator).save(content, "JPEG", quality=90)
        jpegs.append(content.getvalue())
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for index in range(EXAMPLES):
            jpeg = jpegs[index % DIFFERENT]
            member = tarfile.TarInfo(f"flower_photos/{CLASSES[index % 5]}/{index:06}.jpg")
            member.size = len(jpeg)
            tar.addfile(member, io.BytesIO(jpeg))
    in_a_child(PREPARE, "tf_flowers", folder, download_dir, "array_record")
    return folder


@pytest.mark.slow
def test_neither_start_nor_memory_grows_with_the_set(flowers):
    few, all_of_them = (
        json.loads(in_a_child(STREAM, flowers, size, 1)) for size in (1280, EXAMPLES * 9 // 10)
    )
    by_two = json.loads(in_a_child(STREAM, flowers, EXAMPLES * 9 // 10, 2))
    print(f"1,280 images {few}; 18,000 {all_of_them}; 18,000 by two threads {by_two}")
    assert all_of_them["start_seconds"] < few["start_seconds"] + 5
    assert all_of_them["peak_mb"] < few["peak_mb"] + 100
