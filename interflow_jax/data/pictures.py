"""Pictures of any size and mode as the uint8 arrays that a model was trained on."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


@contextlib.contextmanager
def opened(file: str | Path) -> Iterator[Image.Image]:
    """Opens a picture; if that, or decoding in the block, fails, a ValueError names the file.

    A grey one with more than 8 bits is refused, too; of a coloured one, Pillow reads the upper 8.
    """
    try:
        with Image.open(file) as picture:
            _check_bits(picture, file)
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file} cannot be read as an image ({error}); remove or replace it"
        ) from error


TRIES = 10  # boxes drawn per picture, of which the first that lies within it is cut out

# Inception's crops, as commonly drawn: shares of the picture's area, and aspect ratios.
_LEAST_AREA = 0.08
_LARGEST_RATIO = 4 / 3


def _check_bits(picture: Image.Image, name: str | Path) -> None:
    if picture.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
        raise ValueError(
            f"{name} has more than 8 bits per channel (Pillow's mode {picture.mode}); scale it to 8"
        )


def fit(
    picture: Image.Image | np.ndarray,
    shape: tuple[int, int, int],
    draws: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes a picture (bilinear, aspect ratio not kept) and makes it grey or coloured.

    Args:
      picture: a PIL image of at most 8 bits per channel, or [height, width, 1, 3 or 4], uint8.
      shape: (height, width, channels) of the result, uint8; 1 channel is grey, 3 are colour.
      draws: [TRIES, 4], uniform in [0, 1), to cut out a random box and resize that (see
        `crop_box`); None for the whole picture.

    Raises:
      ValueError: for a number of channels other than 1 and 3, or more bits.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise ValueError(f"{channels} channels asked for; choose 1 (grey) or 3 (colour)")
    if isinstance(picture, np.ndarray):
        if picture.shape == shape and draws is None:
            return picture
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    _check_bits(picture, "the picture")
    if draws is not None:
        picture = picture.crop(crop_box(picture.size, draws))
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(shape)


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
