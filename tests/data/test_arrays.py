"""Datasets of a person's own arrays."""

import numpy as np
import pytest

import interflow_jax as ij
from interflow_jax.data.dataset import check_labels, printable

IMAGES, LABELS = np.zeros((4, 5, 6), np.uint8), np.array([0, 1, 2, 1])
FIRST = np.zeros((4, 3, 8, 9), np.uint8)  # its channels, as PyTorch has them


def test_grey_images_gain_a_channel_and_labels_name_themselves():
    dataset = ij.data.from_arrays((IMAGES, LABELS), (IMAGES[:2], LABELS[:2].astype(np.uint8)))
    assert dataset.image_shape == (5, 6, 1)
    assert dataset.class_names == ("0", "1", "2")
    assert (len(dataset.train), len(dataset.test), dataset.notes) == (4, 2, ())
    assert dataset.test.read(np.array([1]))[1].dtype == np.int32


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (IMAGES / 255, LABELS, None, "float64; give uint8"),
        (IMAGES[0], LABELS, None, r"shape \(5, 6\)"),
        (IMAGES[:0], LABELS[:0], None, r"shape \(0, 5, 6, 1\)"),
        (IMAGES, LABELS[:3], None, "train has 3 labels for 4 images"),
        (IMAGES, LABELS, ("a", "b"), "train labels go to 2, but 2 classes are numbered 0 to 1"),
        (IMAGES, 0 * LABELS, ("a",), "the classes are a; give two or more"),
        (IMAGES[:, :4], LABELS, None, "images of train are"),
        (FIRST, LABELS, None, r"channels first; give images.transpose\(0, 2, 3, 1\)"),
        (FIRST[:, :1], LABELS, None, "channels first"),
        (IMAGES, LABELS, "cats", "class_names are 'cats'; give a string per class"),
        (IMAGES, LABELS, [b"a", b"b", b"c"], "class_names are .* give a string per class"),
        (IMAGES, LABELS, ("a", "b", "a"), "class_names repeat a; give every class its own"),
    ],
)
def test_what_does_not_fit_is_named(images, labels, names, message):
    test_labels = np.minimum(LABELS, labels.max(initial=0))
    with pytest.raises(ValueError, match=message):
        ij.data.from_arrays((images, labels), (IMAGES, test_labels), names)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (LABELS / 1, None, r"x labels have shape \(4,\) and type float64; give one integer"),
        (LABELS[:, None], 3, r"shape \(4, 1\)"),
        (LABELS > 0, 3, "type bool"),
        (LABELS - 1, 3, "x labels begin at -1; number the classes from 0 on"),
        (np.array([0, 2**32 - 1], np.uint32), None, "go to 4294967295, but 1048576 classes"),
        (np.array([0, 2**32 + 7]), 10, "go to 4294967303, but 10 classes are numbered 0 to 9"),
        (np.array([0, 2**63], np.uint64), None, "go to 9223372036854775808"),
        (np.array([0, 3], np.int8), 3, "go to 3, but 3 classes"),
    ],
)
def test_labels_never_wrap(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, classes, "x labels")
    for dtype in (np.int8, np.uint8, np.int64, np.uint64):
        assert check_labels(LABELS.astype(dtype), 3, "").dtype == np.int32


def test_names_write_no_control_codes():
    assert printable("a\x1b[2J\r\n\x9b\u202e\ud800 é 猫") == r"a\x1b[2J\r\n\x9b\u202e\ud800 é 猫"
    dataset = ij.data.from_arrays((IMAGES, LABELS), (IMAGES, LABELS), ("a", "b\n", "c"))
    assert dataset.class_names == ("a", r"b\n", "c")
    assert dataset.notes == (r"class names with control characters are written as b\n",)


def test_the_digest_is_that_of_the_bytes():
    def digest(images=IMAGES, labels=LABELS, names=None):
        return ij.data.from_arrays((images, labels), (images, labels), names).digest()

    other = IMAGES.copy()
    other[3, 4, 5] = 1
    digests = [digest(), digest(other), digest(labels=LABELS[::-1]), digest(names=("a", "b", "c"))]
    assert len({*digests, digest(IMAGES.reshape(4, 6, 5))}) == 5
    assert digest(IMAGES[..., None], LABELS.astype(np.uint8)) == digests[0]
