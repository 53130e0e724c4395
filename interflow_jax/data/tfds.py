"""Prepared folders of tensorflow-datasets: looked up and, where missing, prepared.

Nothing here imports TensorFlow: what needs it runs in a child process (`with_tensorflow`).
"""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise ImportError("datasets of tfds need pip install 'interflow_jax[data]'") from error

from interflow_jax.data.dataset import NotPreparedError, PreparationError
from interflow_jax.data.splits import one_line


class UnknownNameError(ValueError):
    """No dataset of tfds has the name; `known` are those that have one."""

    def __init__(self, name: str, known: list[str]):
        super().__init__(f"tfds has no dataset {name!r}")
        self.known = known


class Original(NamedTuple):
    """An original file that tfds has registered for a dataset."""

    url: str
    file_name: str
    size: int  # bytes


def places(data_dir: str | Path | None) -> list[Path]:
    """The folders where prepared datasets are looked for, in order; ValueError for data_dir ""."""
    if data_dir is not None and not str(data_dir):
        raise ValueError("data_dir is empty; give the folder of prepared datasets, or leave it out")
    defaults = [os.environ.get("TFDS_DATA_DIR"), "~/tensorflow_datasets"]
    chosen = defaults if data_dir is None else [data_dir]
    return [Path(os.path.expanduser(place)) for place in chosen if place]


def find(tfds_name: str, data_dir: str | Path | None) -> Path:
    """The folder of the newest prepared version of a dataset, "name[/config][:version]".

    Raises:
      NotPreparedError: if there is none in `places(data_dir)`.
      UnknownNameError: for a name that no dataset of tfds has.
    """
    name, _, version = tfds_name.partition(":")
    for place in places(data_dir):
        prepared = [
            info.parent
            for info in (place / name).glob("*/dataset_info.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
            and version in ("", info.parent.name)
        ]
        if prepared:
            return max(prepared, key=lambda path: [int(part) for part in path.name.split(".")])
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        raise UnknownNameError(tfds_name, known)
    if "/" not in name and (configurations := tfds.builder_cls(name).BUILDER_CONFIGS):
        # tfds takes the first of its configurations for a dataset named without one.
        return find(tfds_name.replace(name, f"{name}/{configurations[0].name}", 1), data_dir)
    raise NotPreparedError(f"no prepared {tfds_name} in {', '.join(map(str, places(data_dir)))}")


def originals(tfds_name: str) -> list[Original]:
    """The files that tfds downloads, if registered; ValueError for an unknown version."""
    try:
        builder = tfds.builder(tfds_name, data_dir="/nonexistent", try_gcs=False)
    except Exception as error:  # for an unknown version an AssertionError, among others
        raise ValueError(f"tfds cannot build {tfds_name}: {one_line(error)}") from error
    return [
        Original(url, information.filename, int(information.size))
        for url, information in (builder.url_infos or {}).items()
    ]


def download_dir(tfds_name: str, data_dir: Path) -> Path:
    """Where a dataset's downloads go, and, in its `manual/`, original files brought by hand."""
    # One folder per dataset, since MNIST, KMNIST and Fashion-MNIST name their files alike.
    return data_dir / "downloads" / re.sub(r"\W", "_", tfds_name)


def prepare(tfds_name: str, data_dir: Path) -> None:
    """Downloads and prepares a dataset as array_record; raises PreparationError with the reason."""
    downloads = download_dir(tfds_name, data_dir)
    for original in originals(tfds_name):
        if not (downloads / "manual" / original.file_name).exists():
            _reach(original.url)
            break
    run_with_tensorflow("prepare", tfds_name, data_dir, downloads)


def _reach(url: str) -> None:
    """Raises PreparationError at once without a network; tfds itself tries for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30).close()
    except urllib.error.HTTPError:
        pass  # the server is there; tfds explains better what it refuses
    except OSError as error:
        raise PreparationError(f"{url} cannot be reached: {error}") from error


def run_with_tensorflow(*arguments: object) -> None:
    """Runs a job of `with_tensorflow` in a child; its progress bars go to our standard error."""
    child = subprocess.run(
        [sys.executable, "-m", "interflow_jax.data.with_tensorflow", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if child.returncode:
        lines = child.stdout.splitlines() or [f"the child ended with {child.returncode}"]
        raise PreparationError(lines[-1])  # tfds prints before the reason
