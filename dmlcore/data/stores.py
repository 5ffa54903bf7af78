"""Where samples lie and how they are fetched: pixels in memory, features in memory, image files. Labels are not here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.images import UNREADABLE, Interpolation, decode
from dmlcore.errors import DataError

_CHUNK = 1024  # samples that are looked at at a time
_BLOCK = 16 * 2**10  # bytes of a large file that are looked at, at three places


class Store(Protocol):
    """Samples by number. `in_memory` says whether fetching is cheap, so that no worker processes are used."""

    in_memory: bool

    def __len__(self) -> int: ...

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Samples as float32 [b, ...], where images are [b, C, H, W] in 0..1.

        Args:
            indices: int64 [b], each in 0..len - 1.
        """
        ...


class PixelStore:
    """Images of one size in memory.

    Args:
        pixels: uint8 [N, C, H, W].
    """

    in_memory = True

    def __init__(self, pixels: np.ndarray) -> None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 4
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Float32 [b, C, H, W] in 0..1."""
        return torch.from_numpy(self.pixels[indices]).float().div_(255)

    def resized(self, size: int, interpolation: Interpolation = "bilinear") -> PixelStore:
        """The same images at `size` x `size`: the shorter side is resized, the rest cut off evenly."""
        parts = []
        for start in range(0, len(self), 1024):
            images = torch.from_numpy(self.pixels[start : start + 1024]).float()
            height, width = images.shape[2:]
            scale = size / min(height, width)
            target = [max(size, round(height * scale)), max(size, round(width * scale))]
            images = torch.nn.functional.interpolate(images, target, mode=interpolation, antialias=True, align_corners=False)
            top, left = (target[0] - size) // 2, (target[1] - size) // 2
            images = images[:, :, top : top + size, left : left + size]  # [b, C, size, size]
            parts.append(images.round_().clamp_(0, 255).to(torch.uint8).numpy())
        return PixelStore(np.concatenate(parts))


class FeatureStore:
    """Feature vectors in memory. A float16 table stays float16 and is converted when fetched.

    Args:
        values: float16 or float32 [N, F].
    """

    in_memory = True

    def __init__(self, values: np.ndarray) -> None:
        assert values.dtype in (np.float16, np.float32) and values.ndim == 2
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Float32 [b, F]."""
        return torch.from_numpy(self.values[indices]).float()


class ImageFiles:
    """Image files that are decoded each time they are fetched.

    Args:
        paths: one file per sample.
        size: height and width to resize and cut to, pixels.
        channels: 1 for grey, 3 for colour.
        interpolation: how they are resized.
    """

    in_memory = False

    def __init__(
        self, paths: Sequence[str], size: tuple[int, int], channels: int, interpolation: Interpolation = "bilinear"
    ) -> None:
        self.paths = paths
        self.size = size
        self.channels = channels
        self.interpolation: Interpolation = interpolation

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Float32 [b, C, H, W] in 0..1.

        Raises:
            DataError: a file cannot be decoded any more.
        """
        pixels = np.empty((len(indices), self.channels, *self.size), dtype=np.uint8)
        for row, path in enumerate(self.paths[int(index)] for index in indices):
            try:
                pixels[row] = decode(path, self.size, self.channels, self.interpolation)
            except UNREADABLE as error:
                raise DataError(f"image '{path}' cannot be read: {error}. Repair or remove it") from error
        return torch.from_numpy(pixels).float().div_(255)


def sample_digests(store: Store) -> np.ndarray:
    """A number per sample that follows from its values as they are fetched: uint64 [N], equal for equal samples."""
    digests = np.empty(len(store), dtype=np.uint64)
    for start in range(0, len(store), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(store)))
        for row, values in zip(rows, store.fetch(rows).numpy(), strict=True):
            digests[row] = _digest(np.ascontiguousarray(values).data)
    return digests


def file_digests(paths: Sequence[str]) -> np.ndarray:
    """A number per file, uint64 [N], that follows from its length and its bytes: all of them where it is small, else those at
    its beginning, its middle and its end.

    Raises:
        DataError: a file cannot be read.
    """
    digests = np.empty(len(paths), dtype=np.uint64)
    for row, path in enumerate(paths):
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = size.to_bytes(8, "big")
                if size <= 3 * _BLOCK:
                    content += file.read()
                else:
                    for place in (0, size // 2, size - _BLOCK):
                        file.seek(place)
                        content += file.read(_BLOCK)
        except OSError as error:
            raise DataError(f"image '{path}' cannot be read: {error.strerror}. Repair or remove it") from error
        digests[row] = _digest(content)
    return digests


def _digest(content: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
