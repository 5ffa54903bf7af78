"""Small pictures of samples, as addresses that hold the picture itself."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from dmlcore import progress
from dmlcore.data import LabelledDataset

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
    wanted = list(dict.fromkeys(int(position) for position in positions))
    addresses: dict[int, str] = {}
    left = MOST_BYTES
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding goes on without the interpreter's lock
        starts = range(0, len(wanted), _AT_A_TIME)
        for start in progress.track(starts, "making thumbnails", len(wanted), _AT_A_TIME):
            part = wanted[start : start + _AT_A_TIME]
            for position, address in zip(part, pool.map(lambda at: _address(dataset, at), part), strict=True):
                left -= len(address)
                if left < 0:
                    return addresses
                addresses[position] = address
    return addresses


def _address(dataset: LabelledDataset, position: int) -> str:
    pixels = dataset.batch([position])[0].clamp(0, 1).mul(255).round().byte().numpy()  # [C, H, W]
    image = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels[:3].transpose(1, 2, 0)))
    is_drawn = max(image.size) <= DRAWN
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True) if is_drawn else image.save(buffer, "JPEG", quality=78)
    return f"data:image/{'png' if is_drawn else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
