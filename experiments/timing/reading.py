"""Reading pictures that do not fit in memory: ours and PyTorch's DataLoader, on the same work.

Both open a JPEG with Pillow, cut a random box, resize it to 224x224 and stack 64 of them.
"""

import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.timing.report import origin
from interflow_jax.data import batches, folders, pictures, preprocessing
from interflow_jax.ops import memory

PICTURES = 20_000
READERS = (1, 2)
TURNS = 3
HEAD = (
    "| | readers | images/s | seconds to the first batch | peak MB, all processes |\n"
    "| --- | ---: | ---: | ---: | ---: |"
)
_DIFFERENT = 200  # the others are links to them, so that it is not the disk that is measured
_CLASSES = 5
_SIZE = 224
_BATCH_SIZE = 64
_BATCHES = 20  # timed, after the first


def photograph(generator: np.random.Generator) -> Image.Image:
    """A picture of about 400x350 pixels, 60 kB as a JPEG: smooth shapes under noise."""
    width, height = generator.integers((360, 320), (440, 380)).tolist()
    coarse = Image.fromarray(generator.integers(0, 256, (24, 28, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + generator.integers(-12, 13, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def measure(torch: bool) -> Iterator[dict[str, Any]]:
    """A row per contender and number of readers; all take turns, each in a new process."""
    with tempfile.TemporaryDirectory(prefix="interflow-reading-") as name:
        folder = Path(name)
        _write(folder)
        contenders = {"ours": _ours, **({"PyTorch's DataLoader": _dataloader} if torch else {})}
        cases = [(name, readers) for name in contenders for readers in READERS]
        turns: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
        for _ in range(TURNS):
            for name, readers in cases:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    turn = pool.submit(_turn, contenders[name], folder, readers)
                    turns[name, readers].append(turn.result())
        for (name, readers), figures in turns.items():
            medians = {key: statistics.median(each[key] for each in figures) for key in figures[0]}
            yield {"contender": name, "readers": readers, **medians, "turns": figures}


def table_row(row: dict[str, Any]) -> str:
    """A row of the table, as Markdown."""
    return (
        f"| {row['contender']} | {row['readers']} | {row['images_per_second']:,.0f} | "
        f"{row['start_seconds']:.1f} | {row['peak_mb']:,.0f} |"
    )


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    return "\n".join(
        [
            "# Reading pictures\n",
            f"{origin(report)}.",
            f"{PICTURES:,} made JPEGs of about 400x350 pixels, {_DIFFERENT} of them different, in "
            "folders; random boxes of",
            f"them at {_SIZE}x{_SIZE}, in batches of {_BATCH_SIZE}. Ours reads in threads, PyTorch "
            "in processes. Medians of",
            f"{TURNS} turns of {_BATCHES} batches. The first batch counts from an open interpreter "
            "with all imported; memory",
            "is the sum of the processes' peaks, which counts pages that they share in each.\n",
            HEAD,
            *map(table_row, report["rows"]),
            "",
        ]
    )


def _write(folder: Path) -> None:
    generator = np.random.default_rng(0)
    originals = folder / "originals"
    originals.mkdir()
    for number in range(_DIFFERENT):
        photograph(generator).save(originals / f"{number}.jpg", quality=90)
    for number in range(PICTURES):
        place = folder / "pictures" / f"class{number % _CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:06}.jpg").hardlink_to(originals / f"{number % _DIFFERENT}.jpg")
    shutil.rmtree(originals)


def _turn(contender: Callable, folder: Path, readers: int) -> dict[str, float]:
    """One turn of a contender, in a process of its own."""
    stream = contender(folder / "pictures", readers)
    next(stream)  # imports what it needs
    start = time.perf_counter()
    next(stream)
    first = time.perf_counter()
    for _ in range(_BATCHES):
        next(stream)
    seconds = time.perf_counter() - first
    stream.close()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kilobytes += readers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "images_per_second": _BATCHES * _BATCH_SIZE / seconds,
        "start_seconds": first - start,
        "peak_mb": kilobytes / 1000,
    }


def _ours(folder: Path, readers: int) -> Iterator[Any]:
    memory.keep_freed_memory()  # as `experiments.run` does
    mesh = batches.device_mesh()
    yield
    train = folders.from_folder(folder, _SIZE).train
    keys = preprocessing.epoch_keys(0, 0)
    stream = batches.streamed_batches(
        train,
        batches.training_order(keys, len(train)),
        batches.chunks(0, len(train) // _BATCH_SIZE, 1),
        mesh,
        _BATCH_SIZE,
        partial(preprocessing.crop_draws, keys, _BATCH_SIZE),
        readers,
    )
    for _, window in stream:
        window.images.block_until_ready()
        yield


def _dataloader(folder: Path, readers: int) -> Iterator[Any]:
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)  # it is the readers that are compared
    yield
    files = [
        (file, label)
        for label, place in enumerate(sorted(folder.iterdir()))
        for file in sorted(place.iterdir())
    ]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            file, label = files[index]
            draws = torch.rand(pictures.TRIES, 4).numpy()
            with Image.open(file) as picture:
                box = picture.crop(pictures.crop_box(picture.size, draws)).convert("RGB")
            resized = box.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(resized)), label

    context = multiprocessing.get_context("fork")  # PyTorch's default on Linux
    for _ in torch.utils.data.DataLoader(
        Pictures(), _BATCH_SIZE, shuffle=True, num_workers=readers, multiprocessing_context=context
    ):
        yield
