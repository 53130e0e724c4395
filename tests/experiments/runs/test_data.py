"""A dataset that is not there is downloaded; what is in the way is one line."""

import pytest

from experiments.runs import data
from interflow_jax.data import tfds_folders


def test_without_data_and_network_one_error_says_all(tmp_path, monkeypatch):
    def no_network(url):
        raise tfds_folders.PreparationError(f"{url} cannot be reached: no network")

    monkeypatch.setattr(tfds_folders, "_reach", no_network)
    with pytest.raises(ValueError, match=r"^no svhn in ") as error:
        data.load("svhn", str(tmp_path), None)
    manual = tfds_folders.download_dir("svhn_cropped", tmp_path) / "manual"
    for said in (
        str(tmp_path),
        "cannot be reached",
        f"python -m experiments.prepare --dataset=svhn --data_dir={tmp_path}",
        "1.58 GB",
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        str(manual),
        "--dataset=fashion_mini",
    ):
        assert said in str(error.value)
    assert "\n" not in str(error.value)
