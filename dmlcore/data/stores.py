"""Where samples lie and how they are fetched: pixels in memory, features in memory, image files. Labels are not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.crops import RandomCrop
from dmlcore.data.encoded import EncodedImages, digest
from dmlcore.data.images import UNREADABLE, Interpolation, decode, decode_part
from dmlcore.errors import DataError

_CHUNK = 1024  # samples that are looked at at a time


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


@runtime_checkable
class CroppingStore(Protocol):
    """Samples that may be cut out at random for training: where `crop` is not None."""

    crop: Any

    def fetch_crops(self, indices: np.ndarray, generator: torch.Generator) -> Tensor:
        """Random crops of samples as float32 [b, C, H, W] in 0..1."""
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

    def resized(self, size: int, interpolation: Interpolation = "bilinear", resize: int = 0) -> PixelStore:
        """The same images at `size` x `size`: the shorter side is resized (to `resize` if that is not 0), the rest cut off."""
        parts = []
        for start in range(0, len(self), 1024):
            images = torch.from_numpy(self.pixels[start : start + 1024]).float()
            height, width = images.shape[2:]
            scale = (resize or size) / min(height, width)
            target = [max(size, round(height * scale)), max(size, round(width * scale))]
            images = torch.nn.functional.interpolate(images, target, mode=interpolation, antialias=True, align_corners=False)
            top, left = (target[0] - size) // 2, (target[1] - size) // 2
            images = images[:, :, top : top + size, left : left + size]  # [b, C, size, size]
            parts.append(images.round_().clamp_(0, 255).to(torch.uint8).numpy())
        return PixelStore(np.concatenate(parts))


class FeatureStore:
    """Feature vectors, or images of floats, in memory. A float16 table stays float16 and is converted when fetched.

    Args:
        values: float16 or float32 [N, F], or [N, C, H, W].
    """

    in_memory = True

    def __init__(self, values: np.ndarray) -> None:
        assert values.dtype in (np.float16, np.float32) and values.ndim > 1
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Float32 [b, F] or [b, C, H, W]."""
        return torch.from_numpy(self.values[indices]).float()


class ImageFiles:
    """Encoded images that are decoded each time they are fetched.

    Args:
        images: one per sample.
        size: height and width to resize and cut to, pixels.
        channels: 1 for grey, 3 for colour.
        interpolation: how they are resized.
        resize: pixels to which the shorter side is resized before the cut; 0: as much as covers `size`.
        crop: which parts of them are drawn for training, or None: they have no crops.
        pixels: uint8 [N, C, H, W], what `fetch` gives, where it was decoded already.
    """

    in_memory = False

    def __init__(
        self,
        images: EncodedImages,
        size: tuple[int, int],
        channels: int,
        interpolation: Interpolation = "bilinear",
        resize: int = 0,
        crop: RandomCrop | None = None,
        pixels: np.ndarray | None = None,
    ) -> None:
        self.images = images
        self.size = size
        self.channels = channels
        self.interpolation: Interpolation = interpolation
        self.resize = resize
        self.crop = crop
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Float32 [b, C, H, W] in 0..1.

        Raises:
            DataError: a file cannot be decoded any more.
        """
        if self.pixels is not None:
            return torch.from_numpy(self.pixels[indices]).float().div_(255)
        size, channels, how = self.size, self.channels, self.interpolation
        return self._decoded(indices, lambda row, index: decode(self.images.opened(index), size, channels, how, self.resize))

    def fetch_crops(self, indices: np.ndarray, generator: torch.Generator) -> Tensor:
        """Random crops of samples as float32 [b, C, H, W] in 0..1; only where there is a `crop`.

        Args:
            indices: int64 [b], each in 0..len - 1.
            generator: on the CPU.

        Raises:
            DataError: a file cannot be decoded any more.
        """
        assert self.crop is not None
        crop, draws = self.crop, self.crop.draw(len(indices), generator)
        size, channels, how = self.size, self.channels, self.interpolation
        return self._decoded(
            indices, lambda row, index: decode_part(self.images.opened(index), crop, draws[row], size, channels, how)
        )

    def _decoded(self, indices: np.ndarray, read: Callable[[int, int], np.ndarray]) -> Tensor:
        pixels = np.empty((len(indices), self.channels, *self.size), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            try:
                pixels[row] = read(row, index)
            except UNREADABLE as error:
                raise DataError(f"image '{self.images.shown(index)}' cannot be read: {error}. Repair or remove it") from error
        return torch.from_numpy(pixels).float().div_(255)


def sample_digests(store: Store) -> np.ndarray:
    """A number per sample that follows from its values as they are fetched: uint64 [N], equal for equal samples."""
    digests = np.empty(len(store), dtype=np.uint64)
    for start in range(0, len(store), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(store)))
        for row, values in zip(rows, store.fetch(rows).numpy(), strict=True):
            digests[row] = digest(np.ascontiguousarray(values).data)
    return digests
