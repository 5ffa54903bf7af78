"""From encoded images and labels to a table: which can be read, at what size, and whether they fit in memory. Where the images
come from is in `image_search`, and in the sources.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.data.augmentation import CropAugmentation, ShiftAugmentation
from dmlcore.data.crops import RandomCrop, resize_for_test
from dmlcore.data.encoded import EncodedImages, PathImages, ShownNames
from dmlcore.data.images import UNREADABLE, Header, Interpolation, decode, read_header
from dmlcore.data.label_sets import LabelSets
from dmlcore.data.levels import LevelOptions
from dmlcore.data.picture_index import LEAST, PictureIndex, spread
from dmlcore.data.sources import Augmentation, Table
from dmlcore.data.stores import ImageFiles, PixelStore
from dmlcore.data.threads import for_each_row
from dmlcore.errors import ConfigError, DataError
from dmlcore.files import writable_text

LARGEST_KEPT = 128  # images that all have one size up to this many pixels keep it
PHOTO_SIZE = 112  # from this size on images are taken for photographs, which may be cropped and mirrored
MOST_LOOKED_AT = 2**18  # images that are read before the training, to find damaged ones: reading 10^7 takes hours
_NAMED = 3  # unreadable files named in a note


@dataclass(frozen=True)
class PixelOptions:
    """Options of every source that has images."""

    augment: Literal["auto", "none", "shift", "crop"] = "auto"
    """Random changes while training: small shifts and turns, random crops, or auto: crops for colour images of 112 pixels and
    more, shifts for others."""
    flip: bool | None = None
    """Mirror half of the training images; none: only together with crops."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """How images are resized; auto: as the model was made for, which is bilinear for most small ones."""
    memory_mb: int = 512
    """Images that fit into this many megabytes once resized are decoded once and kept; others are decoded when needed."""
    crops: Literal["square", "dml"] = "square"
    """Which part of a photograph is seen. square: the middle square, which training crops are drawn from. dml, as in
    publications: training crops are drawn from the whole picture, and tests see the middle of one resized to `resize`."""
    resize: int | None = None
    """Pixels to which the shorter side is resized before a test's middle is cut, with crops dml (default: 256 for images of 224
    to 227 pixels, else 8/7 of their side)."""
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    """Smallest and largest training crop with crops dml, as fractions of the picture's area."""
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    """Smallest and largest width to height of such a crop."""

    def __post_init__(self) -> None:
        check_range("memory_mb", self.memory_mb, least=0)
        check_range("resize", self.resize, least=8, most=8192)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        if self.crops == "square":
            for name in ("resize", "crop_scale", "crop_ratio"):
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(f"{name} is given, but it is for crops = dml, and crops is square")
        elif self.augment in ("crop", "shift"):
            raise ConfigError(f"augment is {self.augment}, but crops dml draw crops already: take auto, or none for no change")
        for name, most in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
                limit = "in (0, 1]" if most == 1 else "above 0"
                raise ConfigError(f"{name} is {', '.join(map(str, values))}, but must be two rising numbers {limit}")

    def random_crop(self) -> RandomCrop | None:
        """How training crops are drawn from whole pictures. None: they are not."""
        if self.crops == "square" or self.augment == "none":
            return None
        (least, most), (narrow, wide) = self.crop_scale, self.crop_ratio
        return RandomCrop((least, most), (narrow, wide), flip=self.flip is not False)


@dataclass(frozen=True)
class ImageOptions(PixelOptions):
    """Options of every source that reads images from a path."""

    path: str = ""
    """Where the data lies."""


@dataclass(frozen=True)
class LevelledOptions(LevelOptions, ImageOptions):
    """Options of sources that read a path and may have coarser labels."""


@dataclass(frozen=True)
class FileOptions(ImageOptions):
    """Options of sources whose images are files of their own."""

    index: Literal["auto", "renew", "none"] = "auto"
    """Whether what is learnt of 10,000 images and more is kept in the user's cache. auto: it is used until a folder, a list or
    an image changes; renew: all files are looked at again; none: nothing is kept."""


@dataclass(frozen=True)
class LevelledFileOptions(LevelledOptions, FileOptions):
    """The same of sources that may have coarser labels."""


def choose_augmentation(options: PixelOptions, sample_shape: Sequence[int]) -> Augmentation | None:
    """What `options.augment` and `options.flip` mean for images of a shape (C, H, W).

    Raises:
        ConfigError: random crops are asked for, which are drawn where image files are read.
    """
    change = options.augment
    if options.random_crop() is not None:
        raise ConfigError("crops dml are drawn from image files, but these images are in memory in one size: take crops square")
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


def _try_header(images: EncodedImages, row: int) -> Header | str:
    try:
        return read_header(images.opened(row))
    except UNREADABLE as error:
        return str(error)


def decode_images(
    images: EncodedImages,
    size: tuple[int, int],
    channels: int,
    interpolation: Interpolation = "bilinear",
    resize: int = 0,
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode images by several threads. Size, channels, interpolation and resize are those of `decode`.

    Returns:
        uint8 [N, channels, height, width], and by row why a file cannot be decoded. Such rows of the pixels are undefined.
    """
    pixels = np.empty((len(images), channels, *size), dtype=np.uint8)  # [N, C, H, W]

    def fill(row: int) -> None:
        pixels[row] = decode(images.opened(row), size, channels, interpolation, resize)

    return pixels, _failures(len(images), fill, "decoding images")


def _damaged(images: EncodedImages, channels: int) -> dict[int, str]:
    """By row why an image cannot be decoded, found by decoding it as small as it goes."""
    return _failures(len(images), lambda row: decode(images.opened(row), (1, 1), channels), "checking images")


def _failures(count: int, read: Callable[[int], object], label: str) -> dict[int, str]:
    failed: dict[int, str] = {}

    def attempt(row: int) -> None:
        try:
            read(row)
        except UNREADABLE as error:
            failed[row] = str(error)

    for_each_row(count, attempt, label)  # Pillow decodes without the interpreter lock
    return failed


def report_unreadable(images: EncodedImages, failed: dict[int, str], where: str) -> list[str]:
    """A note that counts the images which cannot be read and names the first; none where all can.

    Args:
        images: all of them.
        failed: by row why an image cannot be read.
        where: what they are in, for messages.

    Raises:
        DataError: more than half of the images cannot be read.
    """
    if not failed:
        return []
    shown = [f"'{images.shown(row)}' ({_brief(failed[row])})" for row in sorted(failed)[:_NAMED]]
    ellipsis = ", ..." if len(failed) > _NAMED else ""
    if 2 * len(failed) > len(images):
        raise DataError(
            f"{len(failed)} of {len(images)} images in '{where}' cannot be read: {', '.join(shown)}{ellipsis}."
            f" Is the path right?"
        )
    verb = "image that cannot be read was" if len(failed) == 1 else "images that cannot be read were"
    return [f"{len(failed)} {verb} skipped: {', '.join(shown)}{ellipsis}"]


def _brief(reason: str) -> str:
    return "no image" if reason.startswith("cannot identify") else writable_text(reason)


def image_table(
    images: EncodedImages,
    labels: np.ndarray,
    class_names: list[str],
    options: PixelOptions,
    where: str,
    *,
    split: np.ndarray | None = None,
    image_size: int | None = None,
    default_image_size: int = 64,
    label_sets: LabelSets | None = None,
    label_names: Sequence[str] = (),
    levels: Mapping[str, Sequence[str]] | None = None,
    most_looked_at: int | None = None,
    index: PictureIndex | None = None,
) -> Table:
    """A table of encoded images. Unreadable ones are left out and reported in `skipped`.

    Args:
        images: at least one.
        labels: int64 [N], index into `class_names`.
        class_names: a name per class. Classes without any readable image are dropped.
        options: of the source.
        where: what they are in, for messages.
        split: text [N] or None.
        image_size: side asked for by the user, pixels, or None.
        default_image_size: side for images of different sizes, pixels.
        label_sets, label_names: of the classes, where samples have several labels.
        levels: of the classes, where they have coarser labels.
        most_looked_at: images that are read to find damaged ones, evenly spread. All are where they fit into memory.
            None: `MOST_LOOKED_AT`.
        index: of the images, which knows what was read of them before, and is told what is read now. None: none is kept.

    Raises:
        DataError: more than half of the images cannot be read.
    """
    looked_at = spread(len(images), MOST_LOOKED_AT if most_looked_at is None else most_looked_at)
    seen = images if len(looked_at) == len(images) else images.select(looked_at)
    places, headers = looked_at, list[Header | str]()
    is_remembered = index is not None and index.has_seen(places)
    if index is not None and is_remembered:
        readable, failed = index.headers(), index.failed()
    else:
        headers = [_try_header(seen, row) for row in progress.track(range(len(seen)), "reading image headers", len(seen))]
        failed = {row: header for row, header in enumerate(headers) if isinstance(header, str)}
        readable = [header for header in headers if isinstance(header, Header)]
    report_unreadable(seen, failed, where)  # refuses a folder of rubbish before anything is decoded
    resize = 0
    if options.crops == "square":
        size = choose_size(readable, image_size, default_image_size)
    else:
        side = image_size or default_image_size
        size, resize = (side, side), resize_for_test(side, options.resize)
    channels = 1 if all(header.is_grey for header in readable) else 3
    shape = (channels, *size)
    fits = len(images) * channels * size[0] * size[1] <= options.memory_mb * 2**20 and len(images) <= MOST_LOOKED_AT
    if fits and seen is not images:  # all are decoded now
        failed = {int(looked_at[row]): reason for row, reason in failed.items()}
        seen, looked_at = images, np.arange(len(images))
    interpolation = "bilinear" if options.interpolation == "auto" else options.interpolation
    decoding = (size, channels, interpolation, resize)
    pixels = None if is_remembered and not fits else _decoded_or_checked(seen, failed, decoding, keeps=fits)
    if index is not None and not is_remembered:
        of_place = dict(enumerate(failed.get(row, "") for row in places.tolist())) if looked_at is not places else failed
        index.remember_headers(places, headers, {place: reason for place, reason in of_place.items() if reason})
    notes = report_unreadable(seen, failed, where)
    if seen is not images:
        notes.append(f"{len(seen):,} of {len(images):,} images were looked at, evenly spread: a damaged one ends the training")
    is_whole = np.ones(len(images), dtype=bool)
    is_whole[looked_at[list(failed)]] = False
    rows = np.flatnonzero(is_whole)
    present, dense = np.unique(labels[rows], return_inverse=True)
    if len(present) < len(class_names):
        lost = len(class_names) - len(present)
        notes.append(f"{lost} of {len(class_names)} classes have no readable image and were left out")
    whole = images.select(rows) if failed else images
    if pixels is not None and failed:
        pixels = pixels[rows]
    crop = options.random_crop()
    return Table(
        kind="images",
        samples=ImageFiles(whole, *decoding, crop, pixels) if pixels is None or crop else PixelStore(pixels),
        labels=dense.astype(np.int64),
        class_names=[class_names[label] for label in present],
        sample_shape=shape,
        split=None if split is None else split[rows],
        skipped=notes,
        augmentation=None if crop else choose_augmentation(options, shape),
        sample_names=[whole.shown(row) for row in range(len(whole))] if len(whole) < LEAST else ShownNames(whole),
        digests=whole.digests if index is None else functools.partial(index.digests, rows, whole.digests),
        label_sets=None if label_sets is None else label_sets.select(present),
        label_names=list(label_names),
        levels={level: [str(groups[label]) for label in present] for level, groups in (levels or {}).items()},
        paths=whole.paths if isinstance(whole, PathImages) else None,
        unreadable={seen.shown(row): _brief(failed[row]) for row in sorted(failed)},
    )


def _decoded_or_checked(
    images: EncodedImages,
    failed: dict[int, str],
    decoding: tuple[tuple[int, int], int, Interpolation, int],
    *,
    keeps: bool,
) -> np.ndarray | None:
    """The pixels of all images, uint8 [N, C, H, W], undefined where one failed; None where they are not to be kept.

    Images whose damage shows only when they are decoded are added to `failed`. They are decoded once for this, so that the same
    ones are left out whether or not the data fit in memory.
    """
    rows = np.array([row for row in range(len(images)) if row not in failed], dtype=np.int64)
    readable = images.select(rows)
    pixels, damaged = decode_images(readable, *decoding) if keeps else (None, _damaged(readable, decoding[1]))
    if pixels is not None and failed:
        whole = np.empty((len(images), *pixels.shape[1:]), dtype=np.uint8)
        whole[rows] = pixels
        pixels = whole
    failed.update({int(rows[position]): reason for position, reason in damaged.items()})
    return pixels
