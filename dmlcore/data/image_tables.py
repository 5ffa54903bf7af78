"""From image paths and labels to a table: which files can be read, at what size, and whether they fit in memory. Where the
paths come from is in `image_search`, and in the sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dmlcore.config import check_range
from dmlcore.data.augmentation import CropAugmentation, ShiftAugmentation
from dmlcore.data.images import UNREADABLE, Header, Interpolation, decode, read_header
from dmlcore.data.sources import Augmentation, Table
from dmlcore.data.stores import ImageFiles, PixelStore, file_digests
from dmlcore.errors import DataError
from dmlcore.files import writable_text

LARGEST_KEPT = 128  # images that all have one size up to this many pixels keep it
PHOTO_SIZE = 112  # from this size on images are taken for photographs, which may be cropped and mirrored
_NAMED = 3  # unreadable files named in a note


@dataclass(frozen=True)
class ImageOptions:
    """Options of every source that reads images."""

    path: str = ""
    """Where the data lies."""
    augment: Literal["auto", "none", "shift", "crop"] = "auto"
    """Random changes while training: small shifts and turns, random crops, or auto: crops for colour images of 112 pixels and
    more, shifts for others."""
    flip: bool | None = None
    """Mirror half of the training images; none: only together with crops."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """How images are resized; auto: as the model was made for, which is bilinear for most small ones."""
    memory_mb: int = 512
    """Images that fit into this many megabytes once resized are decoded once and kept; others are decoded when needed."""

    def __post_init__(self) -> None:
        check_range("memory_mb", self.memory_mb, least=0)


def choose_augmentation(options: ImageOptions, sample_shape: Sequence[int]) -> Augmentation | None:
    """What `options.augment` and `options.flip` mean for images of a shape (C, H, W)."""
    change = options.augment
    if change == "auto":  # a part of a small drawing may be another character, a part of a photograph is still the same thing
        change = "crop" if sample_shape[0] == 3 and min(sample_shape[1:]) >= PHOTO_SIZE else "shift"
    if change == "none":
        return None
    if change == "crop":
        return CropAugmentation(flip=options.flip is not False)
    return ShiftAugmentation(flip=bool(options.flip))


def choose_size(headers: Sequence[Header], image_size: int | None, default_image_size: int) -> tuple[int, int]:
    """Height and width that image files are resized to: the size asked for, else their own if all have the same small one, else
    the default.

    Args:
        headers: of all readable files, at least one.
        image_size: pixels, or None.
        default_image_size: pixels.
    """
    if image_size is not None:
        return image_size, image_size
    sizes = {(header.height, header.width) for header in headers}
    if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST_KEPT:
        return next(iter(sizes))
    return default_image_size, default_image_size


def _try_header(path: str) -> Header | str:
    try:
        return read_header(path)
    except UNREADABLE as error:
        return str(error)


def decode_images(
    paths: Sequence[str], size: tuple[int, int], channels: int, interpolation: Interpolation = "bilinear"
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode files by several threads. The arguments are those of `decode`.

    Returns:
        uint8 [N, channels, height, width], and by row why a file cannot be decoded. Such rows of the pixels are undefined.
    """
    pixels = np.empty((len(paths), channels, *size), dtype=np.uint8)  # [N, C, H, W]

    def fill(row: int) -> None:
        pixels[row] = decode(paths[row], size, channels, interpolation)

    return pixels, _failures(len(paths), fill)


def _damaged(paths: Sequence[str], channels: int) -> dict[int, str]:
    """By row why a file cannot be decoded, found by decoding it as small as it goes."""
    return _failures(len(paths), lambda row: decode(paths[row], (1, 1), channels))


def _failures(count: int, read: Callable[[int], object]) -> dict[int, str]:
    failed: dict[int, str] = {}

    def attempt(row: int) -> None:
        try:
            read(row)
        except UNREADABLE as error:
            failed[row] = str(error)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter lock
        for _ in pool.map(attempt, range(count), chunksize=64):
            pass
    return failed


def report_unreadable(paths: Sequence[str], failed: dict[int, str], where: str) -> list[str]:
    """A note that counts the images which cannot be read and names the first; none where all can.

    Args:
        paths: of all images.
        failed: by row why an image cannot be read.
        where: the folder that paths are shown relative to.

    Raises:
        DataError: more than half of the images cannot be read.
    """
    if not failed:
        return []
    shown = [
        f"'{writable_text(os.path.relpath(paths[row], where))}' ({_brief(failed[row])})" for row in sorted(failed)[:_NAMED]
    ]
    ellipsis = ", ..." if len(failed) > _NAMED else ""
    if 2 * len(failed) > len(paths):
        raise DataError(
            f"{len(failed)} of {len(paths)} images in '{where}' cannot be read: {', '.join(shown)}{ellipsis}."
            f" Is the path right?"
        )
    verb = "image that cannot be read was" if len(failed) == 1 else "images that cannot be read were"
    return [f"{len(failed)} {verb} skipped: {', '.join(shown)}{ellipsis}"]


def _brief(reason: str) -> str:
    return "no image" if reason.startswith("cannot identify") else writable_text(reason)


def image_table(
    paths: list[str],
    labels: np.ndarray,
    class_names: list[str],
    options: ImageOptions,
    where: str,
    *,
    split: np.ndarray | None = None,
    image_size: int | None = None,
    default_image_size: int = 64,
) -> Table:
    """A table of image files. Unreadable ones are left out and reported in `skipped`.

    Args:
        paths: of the files, at least one.
        labels: int64 [N], index into `class_names`.
        class_names: a name per class. Classes without any readable image are dropped.
        options: of the source.
        where: the folder for messages. Paths are shown relative to it.
        split: text [N] or None.
        image_size: side asked for by the user, pixels, or None.
        default_image_size: side for files of different sizes, pixels.

    Raises:
        DataError: more than half of the images cannot be read.
    """
    headers = [_try_header(path) for path in paths]
    failed = {row: header for row, header in enumerate(headers) if isinstance(header, str)}
    report_unreadable(paths, failed, where)  # refuses a folder of rubbish before anything is decoded
    readable = [header for header in headers if isinstance(header, Header)]
    size = choose_size(readable, image_size, default_image_size)
    channels = 1 if all(header.is_grey for header in readable) else 3
    interpolation = "bilinear" if options.interpolation == "auto" else options.interpolation
    samples, rows = _stored(paths, failed, size, channels, interpolation, options.memory_mb * 2**20)
    shape = (channels, *size)
    notes = report_unreadable(paths, failed, where)
    present, dense = np.unique(labels[rows], return_inverse=True)
    if len(present) < len(class_names):
        lost = len(class_names) - len(present)
        notes.append(f"{lost} of {len(class_names)} classes have no readable image and were left out")
    return Table(
        kind="images",
        samples=samples,
        labels=dense.astype(np.int64),
        class_names=[class_names[label] for label in present],
        sample_shape=shape,
        split=None if split is None else split[rows],
        skipped=notes,
        augmentation=choose_augmentation(options, shape),
        sample_names=[writable_text(os.path.relpath(paths[row], where)) for row in rows],
        digests=lambda: file_digests([paths[row] for row in rows]),
    )


def _stored(
    paths: Sequence[str],
    failed: dict[int, str],
    size: tuple[int, int],
    channels: int,
    interpolation: Interpolation,
    most_bytes: int,
) -> tuple[ImageFiles | PixelStore, np.ndarray]:
    """The readable images, in memory if they fit, else as files, with their rows among the paths.

    Images whose damage shows only when they are decoded are added to `failed`. Files are decoded once for this, so that the
    same images are left out whether or not the data fit in memory.
    """
    rows = np.array([row for row in range(len(paths)) if row not in failed], dtype=np.int64)
    readable = [paths[int(row)] for row in rows]
    fits = len(rows) * channels * size[0] * size[1] <= most_bytes
    pixels, damaged = decode_images(readable, size, channels, interpolation) if fits else (None, _damaged(readable, channels))
    failed.update({int(rows[position]): reason for position, reason in damaged.items()})
    whole = np.array([position for position in range(len(rows)) if position not in damaged], dtype=np.int64)
    if pixels is None:
        return ImageFiles([readable[position] for position in whole], size, channels, interpolation), rows[whole]
    return PixelStore(pixels[whole] if damaged else pixels), rows[whole]
