"""Pictures of any size and mode become the arrays that were asked for."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from interflow_jax.data import pictures

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
DRAWS = np.random.default_rng(1).random((pictures.TRIES, 4))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_every_mode_and_size_fits(mode, shape, resize):
    white = Image.new("RGB", (50, 40), "white").convert(mode)
    fitted = pictures.fit(white, shape, resize=resize)
    assert (fitted.shape, fitted.dtype) == (shape, np.uint8)
    np.testing.assert_array_equal(fitted, 255)


@pytest.mark.parametrize(("mode", "grey"), [("I;16", 2**15), ("I", 2**15), ("F", 0.5)])
def test_more_than_8_bits_are_refused(mode, grey):
    with pytest.raises(ValueError, match=f"more than 8 bits per channel, .*mode {mode}"):
        pictures.fit(Image.new(mode, (5, 4), grey), (5, 4, 1))


def test_height_comes_before_width_and_colour_from_grey_and_grey_from_colour():
    picture = Image.new("L", (2, 4))
    picture.putpixel((1, 3), 255)
    np.testing.assert_array_equal(np.argwhere(pictures.fit(picture, (4, 2, 1))), [[3, 1, 0]])
    assert pictures.fit(NOISE, NOISE.shape) is NOISE
    for channels in (1, 3):
        grey = np.full((3, 3, 4 - channels), 9, np.uint8)
        np.testing.assert_array_equal(pictures.fit(grey, (3, 3, channels)), 9)
    with pytest.raises(ValueError, match="2 channels asked for"):
        pictures.fit(NOISE, (3, 3, 2))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 65535])
def test_pictures_are_turned_as_a_viewer_turns_them(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(tmp_path / f"x.{ending}", exif=exif)
    with Image.open(tmp_path / f"x.{ending}") as picture:
        seen = np.asarray(ImageOps.exif_transpose(picture))
    for draws in (None, DRAWS):
        with pictures.opened(tmp_path / f"x.{ending}") as picture:
            assert pictures.upright_size(picture) == seen.shape[1::-1]
            fitted = pictures.fit(picture, seen.shape, draws)
        np.testing.assert_array_equal(fitted, pictures.fit(seen, seen.shape, draws))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_damaged_exif_is_none(tmp_path, ending):
    Image.fromarray(NOISE).save(tmp_path / f"x.{ending}", exif=b"Exif\0\0no TIFF")
    with pictures.opened(tmp_path / f"x.{ending}") as picture:
        assert pictures.upright_size(picture) == (50, 40)
        assert pictures.fit(picture, (4, 4, 3)).any()


def test_transparency_shows_white(tmp_path):
    array = np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8)
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([200, 0, 0, 200, 0, 0])
    indexed.putpixel((1, 0), 1)
    shown = [array, Image.fromarray(array)]
    for file in (tmp_path / "x.png", tmp_path / "x.gif"):
        indexed.save(file, transparency=1)
        shown.append(Image.open(file))
    for picture in shown:
        fitted = pictures.fit(picture, (1, 2, 3)).tolist()
        assert fitted == [[[200, 0, 0], [255, 255, 255]]]
    assert pictures.fit(Image.new("LA", (1, 1), (0, 128)), (1, 1, 1)).item() == 127


def test_how_a_picture_comes_to_another_aspect():
    wide = np.repeat(np.array([[[10], [20], [20], [30]]], np.uint8), 2, 0)
    crop = pictures.fit(wide, (2, 2, 1), resize="crop")[..., 0]
    pad = pictures.fit(wide, (4, 4, 1), resize="pad")[..., 0]
    assert crop.tolist() == [[20, 20], [20, 20]]
    assert pad.tolist() == [[0] * 4, [10, 20, 20, 30], [10, 20, 20, 30], [0] * 4]
    left, right = pictures.fit(wide, (2, 2, 1))[0, :, 0]
    assert 10 < left < 20 < right < 30
    long = Image.new("L", (1000, 1), 255)
    assert pictures.fit(long, (32, 32, 1), resize="pad").sum() == 32 * 255


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
    # A picture that no try fits is taken whole.
    assert pictures.crop_box((100, 5), np.full((pictures.TRIES, 4), 0.99)) == (0, 0, 100, 5)


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_a_random_box_is_what_is_resized(resize):
    left, upper, right, lower = pictures.crop_box((50, 40), DRAWS)
    expected = pictures.fit(np.ascontiguousarray(NOISE[upper:lower, left:right]), (16, 16, 3))
    np.testing.assert_array_equal(pictures.fit(NOISE, (16, 16, 3), DRAWS, resize), expected)
