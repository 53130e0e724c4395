"""Pictures of any size and mode as the uint8 arrays that a model was trained on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


@contextlib.contextmanager
def opened(file: str | Path) -> Iterator[Image.Image]:
    """Opens a picture; ValueError names the file if that, or decoding in the block, fails.

    Also one with more than 8 bits per channel is refused.
    """
    try:
        with Image.open(file) as picture:
            _check_bits(picture, file)
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file} cannot be read as an image ({error}); remove or replace it"
        ) from error


def _check_bits(picture: Image.Image, name: str | Path) -> None:
    if picture.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
        raise ValueError(
            f"{name} has more than 8 bits per channel (Pillow's mode {picture.mode}); scale it to 8"
        )


def fit(picture: Image.Image | np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Resizes a picture (bilinear, aspect ratio not kept) and makes it grey or coloured.

    Args:
      picture: a PIL image of at most 8 bits per channel, or [height, width, 1, 3 or 4], uint8.
      shape: (height, width, channels) of the result, uint8; 1 channel is grey, 3 are colour.

    Raises:
      ValueError: for a number of channels other than 1 and 3, or more bits.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise ValueError(f"{channels} channels asked for; choose 1 (grey) or 3 (colour)")
    if isinstance(picture, np.ndarray):
        if picture.shape == shape:
            return picture
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    _check_bits(picture, "the picture")
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(shape)
