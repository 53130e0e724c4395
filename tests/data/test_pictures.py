"""Pictures of any size and mode become the arrays that were asked for."""

import numpy as np
import pytest
from PIL import Image

from interflow_jax.data import pictures


def test_an_array_that_fits_is_kept():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    assert pictures.fit(image, (4, 5, 3)) is image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_every_mode_and_size_fits(mode, shape):
    white = Image.new("RGB", (50, 40), "white").convert(mode)
    fitted = pictures.fit(white, shape)
    assert (fitted.shape, fitted.dtype) == (shape, np.uint8)
    np.testing.assert_array_equal(fitted, 255)


@pytest.mark.parametrize(("mode", "grey"), [("I;16", 2**15), ("I", 2**15), ("F", 0.5)])
def test_more_than_8_bits_are_refused(mode, grey):
    with pytest.raises(ValueError, match=f"more than 8 bits per channel .*mode {mode}"):
        pictures.fit(Image.new(mode, (5, 4), grey), (5, 4, 1))


def test_height_comes_before_width():
    picture = Image.new("L", (2, 4))
    picture.putpixel((1, 3), 255)
    np.testing.assert_array_equal(np.argwhere(pictures.fit(picture, (4, 2, 1))), [[3, 1, 0]])


def test_grey_arrays_become_coloured_and_the_other_way_round():
    grey = np.full((3, 3, 1), 9, np.uint8)
    np.testing.assert_array_equal(pictures.fit(grey, (3, 3, 3)), 9)
    np.testing.assert_array_equal(pictures.fit(np.full((3, 3, 3), 9, np.uint8), (3, 3, 1)), 9)


def test_other_channels_are_named():
    with pytest.raises(ValueError, match="2 channels asked for"):
        pictures.fit(np.zeros((3, 3, 1), np.uint8), (3, 3, 2))


def test_random_boxes_lie_in_the_picture_and_have_the_areas_and_ratios_of_inception():
    draws = np.random.default_rng(0).random((2000, pictures.TRIES, 4))
    boxes = np.array([pictures.crop_box((400, 350), draw) for draw in draws])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() == 0
    assert list(boxes.max(axis=0)[2:]) == [400, 350]
    area, ratio = width * height / (400 * 350), width / height
    assert area.min() == pytest.approx(0.08, abs=0.005)
    assert area.max() > 0.97
    np.testing.assert_allclose((ratio.min(), ratio.max()), (3 / 4, 4 / 3), atol=0.02)
    # Where no try is refused, areas and logarithms of ratios are uniform.
    small = area < 0.5
    assert area[small].mean() == pytest.approx(0.29, abs=0.01)
    assert np.log(ratio[small]).mean() == pytest.approx(0, abs=0.02)


def test_a_picture_that_no_try_fits_is_taken_whole():
    assert pictures.crop_box((100, 5), np.full((pictures.TRIES, 4), 0.99)) == (0, 0, 100, 5)


def test_a_random_box_is_what_is_resized():
    array = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    draws = np.random.default_rng(1).random((pictures.TRIES, 4))
    left, upper, right, lower = pictures.crop_box((50, 40), draws)
    expected = pictures.fit(np.ascontiguousarray(array[upper:lower, left:right]), (16, 16, 3))
    np.testing.assert_array_equal(pictures.fit(array, (16, 16, 3), draws), expected)
