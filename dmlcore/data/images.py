"""Decoding image files with Pillow: what a header says, and pixels at a wanted size. Tables of files are not here."""

from __future__ import annotations

import functools
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dmlcore.data.crops import RandomCrop, middle_box

_FORMATS = {  # by the suffix of files; a file may be of another one of these than its suffix says
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
    ".tga": "TGA",
}
IMAGE_SUFFIXES = frozenset(_FORMATS)
GREY_MODES = frozenset(("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B"))
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_WHITE = 255
_ORIENTATION, _TURNED = 0x0112, 5  # a tag of EXIF; from this value on, a camera was turned by a quarter
Interpolation = Literal["bilinear", "bicubic"]
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on metadata; what cannot be decoded is an error


@functools.cache
def _formats() -> list[str]:
    """What Pillow may take a file for. It knows more formats, some of which start programs: EPS runs Ghostscript."""
    Image.init()
    return sorted(set(_FORMATS.values()) & Image.OPEN.keys())


def _with_known_errors(read: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which raises one of UNREADABLE whatever Pillow raises for a malformed file."""

    @functools.wraps(read)
    def reading(*arguments: Any, **named: Any) -> Any:
        try:
            return read(*arguments, **named)
        except UNREADABLE:
            raise
        except Exception as error:  # its parsers raise nearly every type: KeyError, TypeError, OverflowError, MemoryError
            raise OSError(f"{type(error).__name__}: {error}") from error

    return reading


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


@_with_known_errors
def read_header(source: str | BinaryIO) -> Header:
    """Size and colour of an image file without decoding it.

    Raises:
        one of UNREADABLE: the file is no image.
    """
    with Image.open(source, formats=_formats()) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) >= _TURNED:
            width, height = height, width
        return Header(height, width, image.mode in GREY_MODES)


@_with_known_errors
def decode(
    source: str | BinaryIO,
    size: tuple[int, int],
    channels: int,
    interpolation: Interpolation = "bilinear",
    resize: int = 0,
) -> np.ndarray:
    """An image resized so that it covers `size`, then cut to it around the centre. Transparency is laid on white.

    16-bit greys become v / 257, rounded. Of 16-bit colours Pillow gives the upper 8 bits. Floats are taken as 0..255.

    Args:
        source: the path of an image file, or its bytes.
        size: height and width, pixels.
        channels: 1 for grey, 3 for colour.
        interpolation: how it is resized.
        resize: pixels to which the shorter side is resized before the cut, no less than `size`; 0: as much as covers `size`.

    Returns:
        uint8 [channels, height, width].

    Raises:
        one of UNREADABLE: the file is no image, is damaged or cut off, or has values beyond 16 bits or 0..255.
    """
    with Image.open(source, formats=_formats()) as opened:
        before = opened.size
        least = (resize, resize) if resize else (size[1], size[0])
        opened.draft("RGB" if channels == 3 else "L", least)  # JPEG: decode at a fraction of the size if enough
        image = ImageOps.exif_transpose(opened)
        if not resize:
            return fitted(image, size, channels, interpolation)
        is_turned = (image.width > image.height) != (before[0] > before[1])
        whole = (before[1], before[0]) if is_turned else before
        return fitted(image, size, channels, interpolation, resize, whole)


@_with_known_errors
def decode_part(
    source: str | BinaryIO,
    crop: RandomCrop,
    draws: Tensor,
    size: tuple[int, int],
    channels: int,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """A random part of an image, resized to `size`. Only the part is resized, and a JPEG much larger than what is needed of it
    is decoded at a fraction of its size.

    Args:
        source: the path of an image file, or its bytes.
        crop: how the part is drawn.
        draws: float64 [23], the random numbers, as `RandomCrop.draw` gives them.
        size, channels, interpolation: as for `decode`.

    Returns:
        uint8 [channels, height, width].

    Raises:
        one of UNREADABLE: as for `decode`.
    """
    with Image.open(source, formats=_formats()) as opened:
        orientation = opened.getexif().get(_ORIENTATION, 1)
        whole = (opened.height, opened.width) if orientation >= _TURNED else opened.size
        left, top, right, bottom = crop.box(draws, *whole)
        shrunk = max(1.0, min((right - left) / size[1], (bottom - top) / size[0]))  # pixels of the part for one of the result
        opened.draft("RGB" if channels == 3 else "L", (int(opened.width / shrunk), int(opened.height / shrunk)))
        image = opened if orientation == 1 else ImageOps.exif_transpose(opened)  # which copies
        image = _plain(image, channels)
        wide, tall = image.width / whole[0], image.height / whole[1]
        part = image.crop((round(left * wide), round(top * tall), round(right * wide), round(bottom * tall)))
    pixels = _resized(np.array(part), size, interpolation)  # [H, W] or [H, W, 3]
    pixels = pixels[:, ::-1] if crop.is_mirrored(draws) else pixels
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _resized(pixels: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """Pixels uint8 [H, W] or [H, W, 3] at another size, as Pillow resizes them, but in half the time."""
    channels_last = torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)[None]  # [1, C, H, W]
    resized = torch.nn.functional.interpolate(channels_last, size, mode=interpolation, antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).reshape(*size, *pixels.shape[2:]).numpy()


def fitted(
    image: Image.Image,
    size: tuple[int, int],
    channels: int,
    interpolation: Interpolation = "bilinear",
    resize: int = 0,
    whole: tuple[int, int] | None = None,
) -> np.ndarray:
    """A picture as `decode` gives it.

    Args:
        image: the picture, upright.
        size, channels, interpolation, resize: as for `decode`.
        whole: width and height that it had in its file, where it was decoded at a fraction of them.

    Raises:
        ValueError: values beyond 16 bits or 0..255.
    """
    image = _plain(image, channels)
    if resize:
        whole = whole or image.size
        wide, tall = image.width / whole[0], image.height / whole[1]
        left, top, right, bottom = middle_box(*whole, size, resize)
        box = (left * wide, top * tall, min(right * wide, image.width), min(bottom * tall, image.height))
        image = image.resize((size[1], size[0]), _RESAMPLING[interpolation], box)
    elif (image.height, image.width) != size:
        image = ImageOps.fit(image, (size[1], size[0]), _RESAMPLING[interpolation])
    pixels = np.asarray(image)  # [H, W] or [H, W, 3]
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Grey or colour of 8 bits, without transparency."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which copies


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 8 bits from one of 16 or 32 bits or of floats. The scale never depends on what the picture holds."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ValueError("its float pixels are not all in 0..255")
        if values.max() <= 1 and (values != values.round()).any():
            raise ValueError("its float pixels all lie in 0..1, but 0..255 is expected: save it with 8 or 16 bits")
        return Image.fromarray(values.round().astype(np.uint8))
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are not all in 0..65535: save it with 8 or 16 bits")
    grey = (values / 257).round()  # 65535 = 257 * 255
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = _WHITE
    return Image.fromarray(grey.astype(np.uint8))
