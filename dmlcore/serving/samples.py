"""What a program gives a model to encode, as batches of what the model takes: pictures, arrays, tensors and texts, alone, in
lists or one after another, or a data set. Which data sets there are is in `inputs.py`.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmlcore.data import IMAGE_SUFFIXES, UNREADABLE, LabelledDataset, TextStore, decode
from dmlcore.data.images import Interpolation, fitted
from dmlcore.errors import ConfigError, DataError

T = TypeVar("T")
_PIECE = 16  # samples that a thread prepares on end: a picture takes milliseconds, handing one over takes microseconds
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Preparation:
    """How samples become what a model takes.

    Attributes:
        kind: `images`, `features` or `texts`.
        sample_shape: of one sample.
        interpolation: how pictures of another size are resized. They are then cut around the centre.
        resize: pixels to which their shorter side is resized before; 0: as much as covers the cut.
    """

    kind: str
    sample_shape: tuple[int, ...]
    interpolation: Interpolation = "bilinear"
    resize: int = 0

    def in_words(self) -> str:
        """How a picture becomes what the model takes, as the end of "Pictures are resized"."""
        height, width = self.sample_shape[1:]
        how = f"until the shorter side has {self.resize} pixels" if self.resize else f"to cover {width} x {height} pixels"
        return f"{how} ({self.interpolation})"

    def is_one(self, samples: Any) -> bool:
        """Whether this is a single sample, and not several.

        Raises:
            ConfigError: an array of a shape that the model does not take, or that may be either.
        """
        if self.kind == "texts":
            return isinstance(samples, str)
        if self.kind == "images" and isinstance(samples, Image.Image | str | os.PathLike):
            return True
        if self.kind == "features" and isinstance(samples, list | tuple) and samples and isinstance(samples[0], int | float):
            return True
        return isinstance(samples, np.ndarray | Tensor) and self._dimensions(samples) == 0

    def batches(self, samples: Any, batch_size: int, threads: int) -> Iterator[Tensor]:
        """Batches `[b, *sample_shape]` of several samples: float32, or uint8 of texts.

        Args:
            samples: an array or tensor with a sample per row, or anything that gives samples, or arrays of several, in turn.
            batch_size: b of all batches but the last.
            threads: that prepare samples while others are used.

        Raises:
            ConfigError: something that is no sample of this kind.
            DataError: a picture that cannot be read.
        """
        if isinstance(samples, np.ndarray | Tensor):
            pieces = _slices(samples, self._piece(batch_size))
        else:
            pieces = _grouped(self._flat(samples), self._piece(batch_size))
        tasks = (lambda piece=piece: self._prepared(piece) for piece in pieces)
        ready = _ahead(tasks, threads, 2 * batch_size // self._piece(batch_size))
        return _joined(ready, batch_size)

    def _piece(self, batch_size: int) -> int:
        return _piece(batch_size) if self.kind == "images" else batch_size

    def _flat(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Single samples out of what gives them alone or several at a time."""
        try:
            iterator = iter(samples)
        except TypeError:
            raise ConfigError(f"samples are {type(samples).__name__}, but must be {self._expected()}, or several") from None
        for sample in iterator:
            is_array = isinstance(sample, np.ndarray | Tensor) and self.kind != "texts"
            yield from iter(sample) if is_array and self._dimensions(sample) == 1 else (sample,)

    def _prepared(self, piece: Any) -> Tensor:
        """A tensor of some samples: an array with a sample per row, or a list."""
        if self.kind == "texts":
            texts = [piece] if isinstance(piece, str) else list(piece)
            for text in texts:
                if not isinstance(text, str):
                    raise ConfigError(f"a sample is {type(text).__name__}, but must be {self._expected()}")
            return TextStore([text.replace("\0", " ") for text in texts]).fetch(np.arange(len(texts)))
        if self.kind == "features":
            return self._features(piece)
        if isinstance(piece, Tensor | np.ndarray) and tuple(piece.shape[1:]) == self.sample_shape:
            return _unit_interval(_tensor(piece))
        return torch.stack([self._picture(sample) for sample in piece])

    def _features(self, piece: Any) -> Tensor:
        try:
            rows = piece if isinstance(piece, Tensor | np.ndarray) else [np.asarray(_on_cpu(sample)) for sample in piece]
            values = _tensor(rows if isinstance(rows, Tensor | np.ndarray) else np.stack(rows)).float()  # [b, F]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"samples must be {self._expected()}: {' '.join(str(error).split())}") from None
        if tuple(values.shape[1:]) != self.sample_shape:
            raise ConfigError(f"a sample has the shape {list(values.shape[1:])}, but must be {self._expected()}")
        if not bool(values.isfinite().all()):
            raise DataError("a sample is NaN or infinite")
        return values

    def _picture(self, sample: Any) -> Tensor:
        """float32 [C, H, W] in 0..1."""
        channels, *size = self.sample_shape
        try:
            if isinstance(sample, str | os.PathLike):
                if not os.path.isfile(sample):  # a pipe would be waited for
                    raise FileNotFoundError("it does not exist, or is no file")
                return _unit_interval(_tensor(self.decoded(os.fspath(sample))))
            if isinstance(sample, np.ndarray | Tensor):
                tensor = _tensor(sample)
                if tuple(tensor.shape) == self.sample_shape:
                    return _unit_interval(tensor)
                sample = self._as_picture(tensor)
            if isinstance(sample, Image.Image):
                return _unit_interval(_tensor(fitted(sample, (size[0], size[1]), channels, self.interpolation, self.resize)))
        except UNREADABLE as error:
            name = f" '{os.fspath(sample)}'" if isinstance(sample, str | os.PathLike) else ""
            raise DataError(f"the picture{name} cannot be read: {error}") from error
        raise ConfigError(f"a sample is {type(sample).__name__}, but must be {self._expected()}")

    def decoded(self, source: str | BinaryIO) -> np.ndarray:
        """The pixels of an image file, uint8 [C, H, W].

        Raises:
            one of UNREADABLE: as `dmlcore.data.decode`.
        """
        channels, height, width = self.sample_shape
        return decode(source, (height, width), channels, self.interpolation, self.resize)

    def _as_picture(self, tensor: Tensor) -> Image.Image:
        """A picture of Pillow of uint8 [H, W], [H, W, C] or [C, H, W] in another size or with other channels."""
        if tensor.dtype != torch.uint8 or tensor.ndim not in (2, 3) or 0 in tensor.shape:
            got = f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
            raise ConfigError(f"a sample is {got}, but must be {self._expected()}")
        if tensor.ndim == 3:
            tensor = tensor if tensor.shape[2] in _CHANNELS else tensor.permute(1, 2, 0)
            if tensor.shape[2] not in _CHANNELS:
                raise ConfigError(f"a sample has the shape {list(tensor.shape)}, but must be {self._expected()}")
            tensor = tensor[..., 0] if tensor.shape[2] == 1 else tensor
        return Image.fromarray(np.ascontiguousarray(tensor.cpu().numpy()))

    def _dimensions(self, array: np.ndarray | Tensor) -> int:
        """0: a single sample, 1: several.

        Raises:
            ConfigError: neither, or either.
        """
        extra = array.ndim - len(self.sample_shape)
        if self.kind == "images" and array.ndim == 2:
            return 0
        if self.kind == "images" and array.ndim == 3 and tuple(array.shape) != self.sample_shape:
            is_picture = array.shape[2] in _CHANNELS or array.shape[0] in _CHANNELS
            if is_picture and self.sample_shape[0] == 1 and tuple(array.shape[1:]) == self.sample_shape[1:]:
                raise ConfigError(
                    f"an array {list(array.shape)} may be one picture in colour, or {array.shape[0]} grey ones:"
                    f" give [H, W, 3], or [N, 1, H, W]"
                )
            return 0 if is_picture else 1
        if extra not in (0, 1):
            raise ConfigError(f"an array has the shape {list(array.shape)}, but must be {self._expected()}, or several")
        return extra

    def _expected(self) -> str:
        if self.kind == "texts":
            return "a text"
        if self.kind == "features":
            return f"a row of {self.sample_shape[0]} numbers"
        shape = list(self.sample_shape)
        return f"a picture: a path, one of Pillow, uint8 [H, W] or [H, W, 3] of any size, or floats {shape} in 0..1"


def dataset_batches(
    dataset: LabelledDataset, batch_size: int, threads: int, failed: dict[int, str] | None = None
) -> Iterator[Tensor]:
    """Batches of all samples of a data set in their order, as training evaluates them.

    Args:
        dataset: N samples.
        batch_size: samples of all batches but the last.
        threads: that read samples which are not in memory while others are used.
        failed: receives by position why a sample cannot be read, which is then zeros. None: that is an error.

    Raises:
        DataError: a sample cannot be read.
    """
    size = batch_size if dataset.in_memory else _piece(batch_size)
    starts = range(0, len(dataset), size)
    tasks = (lambda start=start: _read(dataset, range(start, min(start + size, len(dataset))), failed) for start in starts)
    return _joined(_ahead(tasks, 0 if dataset.in_memory else threads, 2 * batch_size // size), batch_size)


def _read(dataset: LabelledDataset, positions: range, failed: dict[int, str] | None) -> Tensor:
    try:
        return dataset.batch(positions)
    except DataError:
        if failed is None:
            raise
    rows = []
    for position in positions:
        try:
            rows.append(dataset.batch([position]))
        except DataError as error:
            failed[position] = str(error)
            rows.append(torch.zeros(1, *dataset.sample_shape))
    return torch.cat(rows)


def default_threads() -> int:
    """Threads that prepare samples where nothing is said: one per core of this process, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)


def is_picture_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path is called like a picture's, and is no folder."""
    return os.path.splitext(os.fspath(path))[1].lower() in IMAGE_SUFFIXES and not os.path.isdir(path)


def _piece(batch_size: int) -> int:
    """Samples that a thread prepares on end; whole numbers of them make a batch."""
    return _PIECE if batch_size % _PIECE == 0 else batch_size


def _ahead(tasks: Iterable[Callable[[], T]], threads: int, most: int) -> Iterator[T]:
    """The results of tasks in their order, some of which are done by threads before they are asked for.

    Args:
        tasks: taken from as results are used.
        threads: 0: no other thread.
        most: tasks that are begun and not used.
    """
    if not threads:
        yield from (task() for task in tasks)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _tensor(array: np.ndarray | Tensor) -> Tensor:
    return array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.array(array))  # a copy: it may be read-only


def _unit_interval(images: Tensor) -> Tensor:
    """float32 in 0..1 of uint8; floats as they are, since a model may have been trained on any.

    Raises:
        ConfigError: other whole numbers, or floats that stand for 0..255.
        DataError: NaN or infinite.
    """
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    if not images.is_floating_point():
        raise ConfigError(f"pictures are {str(images.dtype).removeprefix('torch.')}, but must be uint8 or floats in 0..1")
    if not bool(images.isfinite().all()):
        raise DataError("a picture is NaN or infinite")
    if images.numel() and float(images.max()) > 1 and bool((images == images.round()).all()):
        raise ConfigError(f"pictures of floats go up to {float(images.max()):g}: divide them by 255, or give uint8")
    return images.float()


def _slices(array: np.ndarray | Tensor, size: int) -> Iterator[Any]:
    return (array[start : start + size] for start in range(0, len(array), size))


def _grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _joined(pieces: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches of pieces whose length divides that of a batch."""
    waiting: list[Tensor] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= batch_size:
            yield _whole(waiting)
            waiting = []
    if waiting:
        yield _whole(waiting)


def _whole(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
