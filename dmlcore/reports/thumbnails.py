"""Small pictures of samples, as addresses that hold the picture itself."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from dmlcore import progress
from dmlcore.data import UNREADABLE, LabelledDataset, decode
from dmlcore.data.images import read_header

K = TypeVar("K")
SIDE = 96  # pixels of the longer side
DRAWN = 48  # pixels up to which a picture is kept exactly; larger ones are photographs
MOST_BYTES = 3_000_000  # of all addresses of a page
_AT_A_TIME = 32


def thumbnails(dataset: LabelledDataset, positions: Iterable[int]) -> dict[int, str]:
    """A `data:` address for each sample, without augmentation; fewer where they would take too many bytes.

    Args:
        dataset: of images, [C, H, W] in 0..1.
        positions: of the samples; the first are the most important.

    Raises:
        DataError: a file cannot be decoded any more.
    """
    return _addresses([int(position) for position in positions], lambda position: _of_sample(dataset, position))


def file_thumbnails(paths: Iterable[str]) -> dict[str, str]:
    """A `data:` address for each file that is a picture; fewer where they would take too many bytes."""
    return _addresses(paths, _of_file)


def _addresses(keys: Iterable[K], address_of: Callable[[K], str]) -> dict[K, str]:
    """Addresses by key; none for what has an empty one."""
    wanted = list(dict.fromkeys(keys))
    addresses: dict[K, str] = {}
    left = MOST_BYTES
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding goes on without the interpreter's lock
        starts = range(0, len(wanted), _AT_A_TIME)
        for start in progress.track(starts, "making thumbnails", len(wanted), _AT_A_TIME):
            part = wanted[start : start + _AT_A_TIME]
            for key, address in zip(part, pool.map(address_of, part), strict=True):
                left -= len(address)
                if left < 0:
                    return addresses
                if address:
                    addresses[key] = address
    return addresses


def _of_sample(dataset: LabelledDataset, position: int) -> str:
    pixels = dataset.batch([position])[0].clamp(0, 1).mul(255).round().byte().numpy()  # [C, H, W]
    return _address(Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels[:3].transpose(1, 2, 0))))


def _of_file(path: str) -> str:
    try:
        header = read_header(path)
        share = min(1.0, SIDE / max(header.height, header.width))
        size = max(1, round(header.height * share)), max(1, round(header.width * share))
        pixels = decode(path, size, 1 if header.is_grey else 3)  # [C, h, w]
    except UNREADABLE:
        return ""
    return _address(Image.fromarray(np.ascontiguousarray(pixels[0] if header.is_grey else pixels.transpose(1, 2, 0))))


def _address(image: Image.Image) -> str:
    is_drawn = max(image.size) <= DRAWN
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True) if is_drawn else image.save(buffer, "JPEG", quality=78)
    return f"data:image/{'png' if is_drawn else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
