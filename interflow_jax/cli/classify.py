"""Classifies pictures with an exported program: python classify.py cat.jpg dog.png

It stands beside the program and its .json, and needs jax, flatbuffers, Pillow and numpy alone.
"""

import contextlib
import hashlib
import io
import json
import pathlib
import sys
from typing import cast

import jax
import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no others of Pillow's are opened
TURNS = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))  # by EXIF
PROGRAM = pathlib.Path(__file__).with_name("model.stablehlo")


def pixels(file: str, shape: list[int], resize: str) -> np.ndarray:
    """A picture as the run took its own: upright, on white, resized, uint8."""
    (height, width, channels), method = shape, Image.Resampling.BILINEAR
    picture = Image.open(file, formats=FORMATS)
    picture.load()
    with contextlib.suppress(Exception):  # upright already, or damaged EXIF, which viewers ignore
        picture = picture.transpose(TURNS[Image.Image.getexif(picture)[274]])
    if picture.mode.startswith(("I", "F")):
        raise ValueError("more than 8 bits per channel: scale it to 8")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if resize == "crop":
        picture = ImageOps.fit(picture, (width, height), method)
    elif resize == "squash":
        picture = picture.resize((width, height), method)
    else:  # the whole picture, centred on zero pixels
        scale, whole = min(width / picture.width, height / picture.height), picture
        size = (max(1, round(scale * whole.width)), max(1, round(scale * whole.height)))
        picture = Image.new(whole.mode, (width, height))
        picture.paste(whole.resize(size, method), ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(picture, np.uint8).reshape(shape)


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        raise SystemExit(__doc__)
    program = PROGRAM.read_bytes()
    about = json.loads(PROGRAM.with_name(f"{PROGRAM.name}.json").read_text())
    if hashlib.sha256(program).hexdigest() != about["sha256"]:
        raise SystemExit(f"{PROGRAM} is broken, or its .json is another model's")
    predict = jax.jit(jax.export.deserialize(bytearray(program)).call)
    cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")  # of any name
    unread = 0
    for file in sys.argv[1:]:
        try:
            image = pixels(file, about["image_shape"], about["resize"])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            print(f"{file} cannot be read: {error}", file=sys.stderr)
            unread = 1
            continue
        (probabilities,) = np.asarray(predict(image[None])[0])
        label = int(probabilities.argmax())
        print(f"{file}: {about['class_names'][label]} {probabilities[label]:.1%}")
    sys.exit(unread)
