"""Decoding image files with Pillow: what a header says, and pixels at a wanted size. Tables of files are not here."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".jp2",
        ".tga",
    )
)
_GREY_MODES = frozenset(("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B"))
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 4096  # cameras append data behind the end marker


@dataclass(frozen=True)
class Header:
    """What an image file says about itself.

    Attributes:
        height: pixels, as displayed.
        width: pixels, as displayed.
        is_grey: the file has no colour.
    """

    height: int
    width: int
    is_grey: bool


def read_header(path: str) -> Header:
    """Size and colour of an image file without decoding it. Also checks that JPEG and PNG files are not cut off.

    Raises:
        one of UNREADABLE: the file is no image, or is incomplete.
    """
    with Image.open(path) as image:
        ending = _ENDINGS.get(image.format or "")
        width, height = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # rotated by a quarter turn
            width, height = height, width
        header = Header(height, width, image.mode in _GREY_MODES)
    if ending:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
            if ending not in file.read():
                raise OSError("the file is cut off")
    return header


def decode(path: str, size: tuple[int, int], channels: int) -> np.ndarray:
    """An image resized so that it covers `size`, then cut to it around the centre. Transparency is laid on white.

    Args:
        path: an image file.
        size: height and width, pixels.
        channels: 1 for grey, 3 for colour.

    Returns:
        uint8 [channels, height, width].

    Raises:
        one of UNREADABLE: the file is no image, or is damaged.
    """
    with Image.open(path) as opened:
        opened.draft("RGB" if channels == 3 else "L", (size[1], size[0]))  # JPEG: decode at a fraction of the size if enough
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = _eight_bit(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        if (image.height, image.width) != size:
            image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)  # [H, W] or [H, W, 3]
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32)
    if image.mode != "F":
        values = values / (257 if values.max(initial=0) > 255 else 1)  # 16 bits to 8, unless only 8 are used
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
