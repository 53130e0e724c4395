"""A dataset that is not there is downloaded; what is in the way is one line."""

import pytest

from interflow_jax.cli import data
from interflow_jax.data import tfds


def test_without_data_and_network_one_error_says_all(tmp_path, monkeypatch):
    def no_network(url):
        raise tfds.PreparationError(f"{url} cannot be reached: no network")

    monkeypatch.setattr(tfds, "_reach", no_network)
    with pytest.raises(ValueError, match=r"^no svhn in ") as error:
        data.load("svhn", str(tmp_path), None)
    for said in (
        str(tmp_path),
        "cannot be reached",
        f"interflow prepare --dataset=svhn --data_dir={tmp_path}",
        "1.58 GB",
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        str(tfds.download_dir("svhn_cropped", tmp_path) / "manual"),
        "--dataset=fashion_mini",
    ):
        assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10:9.9.9", "tfds cannot build cifar10:9.9.9"),
        ("eurosat/nosuch", "tfds cannot build eurosat/nosuch"),
        ("/data/mnist", "is a path"),
        ("folder:/nowhere", "is no folder"),
    ],
)
def test_names_are_checked_before_any_work(tmp_path, name, message):
    def begin():
        raise AssertionError("work began")

    data.check("fashion_mini", str(tmp_path))
    data.check("svhn", str(tmp_path))
    for check in (data.check, lambda name, folder: data.load(name, folder, None, begin)):
        with pytest.raises(ValueError, match=message):
            check(name, str(tmp_path))
