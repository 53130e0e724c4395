"""Pictures of any size and mode as the uint8 arrays that a model was trained on."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

# Pillow would choose a decoder by content, Ghostscript and other programs among them.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

Resize = Literal["squash", "crop", "pad"]
"""How a picture comes to another size (see `fit`)."""

_RESIZED: dict[str, str] = {"squash": "squashed", "crop": "cropped", "pad": "padded"}

LARGEST_SIDE = 4096  # pixels; memory would end a training or a prediction beyond that

TRIES = 10  # boxes drawn per picture, of which the first that lies within it is cut out

# Inception's crops, as commonly drawn: shares of the picture's area, and aspect ratios.
_LEAST_AREA = 0.08
_LARGEST_RATIO = 4 / 3

_UPRIGHT = {  # by EXIF's orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def opened(file: str | Path | BinaryIO, name: str | None = None) -> Iterator[Image.Image]:
    """Opens a picture in one of `FORMATS`, of an animation the first frame.

    Raises:
      ValueError: names the file, or the stream by `name`, if that, or decoding in the block, fails,
        and for grey with more than 8 bits; of colour with more, Pillow reads the upper 8.
    """
    try:
        with Image.open(file, formats=FORMATS) as picture:
            _check_bits(picture)
            yield picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        none = isinstance(error, Image.UnidentifiedImageError)
        reason = f"it is none of {', '.join(FORMATS)}" if none else error
        raise ValueError(
            f"{name or file} cannot be read as an image ({reason}); remove or replace it"
        ) from error


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) as a viewer shows the picture; decodes no pixels."""
    width, height = picture.size
    turned = picture.format != "TIFF" and _orientation(picture) >= 5  # Pillow turns TIFFs itself
    return (height, width) if turned else (width, height)


def _orientation(picture: Image.Image) -> int:
    try:
        # A PNG's own `getexif` would decode it, to look behind its pixels.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)
        return orientation if orientation in _UPRIGHT else 1
    except Exception:  # of damaged EXIF Pillow raises errors of any type; viewers ignore it
        return 1


def _check_bits(picture: Image.Image) -> None:
    if picture.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
        raise ValueError(f"more than 8 bits per channel, Pillow's mode {picture.mode}: scale to 8")


def check_resize(resize: str) -> None:
    """Raises ValueError for none of `Resize`."""
    if resize not in _RESIZED:
        raise ValueError(f"resize is {resize!r}; choose one of {', '.join(_RESIZED)}")


def check_image_size(image_size: int | None) -> None:
    """Raises ValueError for a height and width below 1 or above `LARGEST_SIDE`."""
    if image_size is not None and not 1 <= image_size <= LARGEST_SIDE:
        raise ValueError(f"image_size is {image_size}; choose 1 to {LARGEST_SIDE}")


def resized_note(old: str, size: tuple[int, int], resize: Resize) -> str:
    """Says that images of old sizes come to (width, height)."""
    return f"images: {old}, resized to {size[0]}x{size[1]} ({_RESIZED[resize]})"


def fit(
    picture: Image.Image | np.ndarray,
    shape: tuple[int, int, int],
    draws: np.ndarray | None = None,
    resize: Resize = "squash",
) -> np.ndarray:
    """Turns a picture upright (EXIF), lays it on white, resizes it (bilinear) to grey or colour.

    Args:
      picture: a PIL image of at most 8 bits per channel, or [height, width, 1, 3 or 4], uint8.
      shape: (height, width, channels) of the result, uint8; 1 channel is grey, 3 are colour.
      draws: [TRIES, 4], uniform in [0, 1), to cut out a random box and squash that (see
        `crop_box`); None for the whole picture.
      resize: "squash" changes the aspect ratio; "crop" cuts off the longer side at both ends;
        "pad" keeps all, centred on zero pixels.

    Raises:
      ValueError: for a number of channels other than 1 and 3, more bits, or another `resize`.
    """
    check_resize(resize)
    height, width, channels = shape
    if channels not in (1, 3):
        raise ValueError(f"{channels} channels asked for; choose 1 (grey) or 3 (colour)")
    if isinstance(picture, np.ndarray):
        if picture.shape == shape and draws is None:
            return picture
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    _check_bits(picture)
    picture.load()
    if (orientation := _orientation(picture)) in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    if draws is not None:
        picture = picture.crop(crop_box(picture.size, draws))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    size, method = (width, height), Image.Resampling.BILINEAR
    if picture.size != size:
        if draws is not None or resize == "squash":
            picture = picture.resize(size, method)
        elif resize == "crop":
            picture = ImageOps.fit(picture, size, method)
        else:
            picture = _padded(picture, size, method)
    return np.asarray(picture, np.uint8).reshape(shape)


def fit_all(
    files: Iterable[tuple[str | Path | BinaryIO, str | None]],
    shape: tuple[int, int, int],
    draws: np.ndarray | None,
    resize: Resize,
) -> np.ndarray:
    """Reads pictures, each as `opened` takes it, and fits them: [pictures, *shape], uint8.

    With draws, [pictures, tries, 4], a box of each is cut out. Raises ValueError for all that
    cannot be read together.
    """
    images, errors = [], []
    for number, (file, name) in enumerate(files):
        try:
            with opened(file, name) as picture:
                draw = None if draws is None else draws[number]
                images.append(fit(picture, shape, draw, resize))
        except ValueError as error:
            errors.append(error)
    raise_all(errors)
    return np.stack(images)


def raise_all(errors: list[ValueError]) -> None:
    """Raises one error in place of several; none without any."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ValueError(f"{len(errors)} files cannot be read: {'; '.join(map(str, errors[:5]))}")


def _padded(picture: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    scale = min(size[0] / picture.width, size[1] / picture.height)
    # At least 1: `ImageOps.pad` loses a very long picture, whose shorter side it rounds to 0.
    width, height = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
    padded = Image.new(picture.mode, size)
    corner = (size[0] - width) // 2, (size[1] - height) // 2
    padded.paste(picture.resize((width, height), method), corner)
    return padded


def crop_box(size: tuple[int, int], draws: np.ndarray) -> tuple[int, int, int, int]:
    """A random box of 8 to 100% of a picture's area, its aspect ratio 3:4 to 4:3.

    Args:
      size: (width, height) of the picture.
      draws: [tries, 4], uniform in [0, 1): for area, aspect ratio, left and upper edge.

    Returns:
      (left, upper, right, lower) of the first try that lies within the picture, else all of it.
    """
    width, height = size
    for area, ratio, left, upper in draws.tolist():
        pixels = width * height * (_LEAST_AREA + (1 - _LEAST_AREA) * area)
        aspect = math.exp(math.log(_LARGEST_RATIO) * (2 * ratio - 1))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(upper * (height - h + 1))
            return x, y, x + w, y + h
    return 0, 0, width, height
