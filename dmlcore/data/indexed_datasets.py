"""From a data set that gives (sample, label) by number, as those of PyTorch do, to a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from dmlcore.data.array_tables import named_classes, present_labels
from dmlcore.data.image_tables import LARGEST_KEPT, PixelOptions, choose_augmentation
from dmlcore.data.images import GREY_MODES, fitted
from dmlcore.data.multi_label import NamedSets, named_sets, set_classes, sets_of_matrix
from dmlcore.data.sources import Table
from dmlcore.data.stores import FeatureStore, PixelStore
from dmlcore.errors import DataError

SAMPLES = ("image", "img", "pixel_values", "x", "features", "embedding", "embeddings", "vector")
"""What the samples of a row are called where it is a dict or a table, the likeliest first."""
LABELS = ("label", "labels", "y", "class", "target", "class_name", "fine_label")
"""What its label is called."""
_PROBES = 64  # pictures whose sizes are looked at
_CHUNK = 256  # samples that are fetched at a time


class DatasetStore:
    """The samples of a data set, fetched each time.

    Args:
        dataset: gives (sample, label), or a dict, by number.
        size: height and width of pictures, pixels. None: the samples are numbers.
        channels: of pictures.
        where: what it is, for messages.
    """

    in_memory = False

    def __init__(self, dataset: Any, size: tuple[int, int] | None, channels: int, where: str) -> None:
        self.dataset = dataset
        self._size = size
        self._channels = channels
        self._where = where

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Float32 [b, ...].

        Raises:
            DataError: samples of different shapes, or numbers that are not finite.
        """
        raw = torch.stack(self._alike([self.sample(index) for index in indices.tolist()], indices))
        values = raw.float().div_(255) if raw.dtype == torch.uint8 else raw.float()
        is_finite = values.flatten(1).isfinite().all(1)
        if not bool(is_finite.all()):
            raise DataError(f"sample {indices[int((~is_finite).nonzero()[0])]} of {self._where} is NaN or infinite")
        return values

    def sample(self, index: int) -> Tensor:
        """One sample as it is: uint8 [C, H, W] of a picture, else numbers."""
        value = parts_of(self.dataset[index], index, self._where)[0]
        if isinstance(value, Image.Image):
            if self._size is None:
                raise DataError(f"sample {index} of {self._where} is a picture, but the first one is not")
            return torch.from_numpy(np.array(fitted(value, self._size, self._channels)))
        tensor = value if isinstance(value, Tensor) else _tensor(value, index, self._where)
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.uint8 and tensor.ndim == 2:
            return tensor[None]
        if tensor.dtype == torch.uint8 and tensor.ndim == 3 and tensor.shape[2] in (1, 3) and tensor.shape[0] not in (1, 3):
            return tensor.permute(2, 0, 1)
        return tensor

    def _alike(self, samples: list[Tensor], indices: np.ndarray) -> list[Tensor]:
        for index, sample in zip(indices.tolist(), samples, strict=True):
            if sample.shape != samples[0].shape or sample.dtype != samples[0].dtype:
                raise DataError(
                    f"samples of {self._where} differ: {indices[0]} is {list(samples[0].shape)} of {samples[0].dtype}, {index}"
                    f" is {list(sample.shape)} of {sample.dtype}. Bring them to one shape"
                )
        return samples


def parts_of(item: Any, index: int, where: str) -> tuple[Any, Any]:
    """The sample and the label of what a data set gives for a number.

    Raises:
        DataError: it is neither (sample, label) nor a dict with such.
    """
    if isinstance(item, Mapping):
        names = [next((name for name in choices if name in item), None) for choices in (SAMPLES, LABELS)]
        if None not in names:
            return item[names[0]], item[names[1]]
        raise DataError(
            f"item {index} of {where} has the keys {', '.join(map(str, item))}, but a sample is called {', '.join(SAMPLES[:4])}"
            f" and a label {', '.join(LABELS[:3])}"
        )
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise DataError(f"item {index} of {where} is {type(item).__name__}, but must be (sample, label)")


def dataset_table(
    dataset: Any, options: PixelOptions, where: str, *, image_size: int | None = None, default_image_size: int = 64
) -> Table:
    """A table of a data set. Samples that fit into `options.memory_mb` are kept in memory.

    Args:
        dataset: has a length and gives (sample, label) by number. A sample is a tensor or an array ([F], or [C, H, W]), or a
            picture of Pillow; a label is a whole number or text, or a vector of 0 and 1 or a list of texts: several labels.
        options: how images are augmented, and kept.
        where: what it is, for messages.
        image_size: side of pictures that is asked for, pixels, or None.
        default_image_size: side for pictures of different sizes, pixels.

    Raises:
        DataError: no samples, samples or labels of other forms.
    """
    if not len(dataset):
        raise DataError(f"{where} have no samples")
    size, channels = _picture_form(dataset, where, image_size, default_image_size)
    store = DatasetStore(dataset, size, channels, where)
    first = store.sample(0)
    if first.ndim not in (1, 3) or 0 in first.shape:
        raise DataError(f"samples of {where} are {list(first.shape)}, but must be [F] or [C, H, W]")
    about: dict[str, Any] = {}
    if np.ndim(parts_of(dataset[0], 0, where)[1]) == 1:
        sets = _label_sets(dataset, where)
        if not sets.sets.sizes.all():
            raise DataError(f"{int((sets.sets.sizes == 0).sum())} samples of {where} have no label. Leave them out")
        labels, class_names, class_sets = set_classes(sets.sets, sets.names)
        notes, about = sets.notes, {"label_sets": class_sets, "label_names": sets.names}
    else:
        labels, has_label = present_labels(_labels(dataset, where), len(dataset), where, "label")
        if not has_label.all():
            raise DataError(f"{int((~has_label).sum())} samples of {where} have no label. Leave them out")
        labels, class_names, notes = named_classes(labels, _names_of_classes(dataset), where, "classes")
    is_random = _is_random(store)
    augmentation = choose_augmentation(options, tuple(first.shape)) if first.ndim == 3 and not is_random else None
    kind = "images" if first.ndim == 3 else "features"
    if is_random:
        notes.append(
            "its samples change each time they are read: no other augmentation, and they are known again by their place"
        )
        places = np.arange(len(dataset), dtype=np.uint64)
        return Table(kind, store, labels, class_names, tuple(first.shape), None, notes, digests=lambda: places, **about)
    width = 1 if first.dtype == torch.uint8 else 4  # bytes
    fits = first.numel() * len(dataset) * width <= options.memory_mb * 2**20
    samples = _kept(store, first) if fits else store
    return Table(kind, samples, labels, class_names, tuple(first.shape), None, notes, augmentation, **about)


def _picture_form(
    dataset: Any, where: str, image_size: int | None, default_image_size: int
) -> tuple[tuple[int, int] | None, int]:
    """Size and channels of the pictures of a data set; no size where its samples are numbers."""
    probes = np.unique(np.linspace(0, len(dataset) - 1, min(_PROBES, len(dataset))).round().astype(int)).tolist()
    if not isinstance(parts_of(dataset[0], 0, where)[0], Image.Image):
        return None, 0
    pictures = [parts_of(dataset[index], index, where)[0] for index in probes]
    pictures = [picture for picture in pictures if isinstance(picture, Image.Image)]
    channels = 1 if all(picture.mode in GREY_MODES for picture in pictures) else 3
    if image_size is not None:
        return (image_size, image_size), channels
    sizes = {(picture.height, picture.width) for picture in pictures}
    if len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST_KEPT:
        return next(iter(sizes)), channels
    return (default_image_size, default_image_size), channels


def _tensor(value: Any, index: int, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"sample {index} of {where} is {type(value).__name__}, which is no array ({error})") from None


def _labels(dataset: Any, where: str) -> np.ndarray:
    """The labels of a data set: of its list of `targets`, where that agrees with what it gives, else sample by sample."""
    if isinstance(dataset, Subset):
        return _labels(dataset.dataset, where)[np.asarray(dataset.indices, dtype=np.int64)]
    targets = getattr(dataset, "targets", None)
    if targets is not None and np.shape(targets) == (len(dataset),):
        probes = np.array([_label(dataset, index, where) for index in (0, len(dataset) // 2, len(dataset) - 1)])
        listed = np.asarray(targets)
        if np.array_equal(listed[[0, len(dataset) // 2, len(dataset) - 1]], probes):  # no `target_transform` changes them
            return listed
    return np.array([_label(dataset, index, where) for index in range(len(dataset))])


def _label_sets(dataset: Any, where: str) -> NamedSets:
    """The labels of a data set whose samples have several: a vector of 0 and 1 each, or a list of texts."""
    entries = [parts_of(dataset[index], index, where)[1] for index in range(len(dataset))]
    names = _names_of_classes(dataset)
    if all(isinstance(entry, list | tuple) and all(isinstance(label, str) for label in entry) for entry in entries):
        return named_sets(entries, where=where)
    try:
        matrix = np.stack([np.asarray(entry.cpu() if isinstance(entry, Tensor) else entry) for entry in entries])
    except (TypeError, ValueError) as error:
        raise DataError(f"the labels of {where} are vectors of different lengths ({error})") from None
    if matrix.ndim != 2:
        raise DataError(f"the labels of {where} are {list(matrix.shape[1:])}, but must be one, or a vector of 0 and 1")
    return sets_of_matrix(matrix, names, where, "label")


def _label(dataset: Any, index: int, where: str) -> Any:
    label = parts_of(dataset[index], index, where)[1]
    if isinstance(label, str):
        return label
    if np.ndim(label) == 0 and hasattr(label, "item"):  # of NumPy or PyTorch
        label = label.item()
    if isinstance(label, int | float | str):
        return label
    shown = list(np.shape(label)) or type(label).__name__
    raise DataError(f"label {index} of {where} is {shown}, but must be one whole number or text")


def _names_of_classes(dataset: Any) -> np.ndarray | None:
    """The names that data sets of torchvision have for their whole numbers."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    is_names = isinstance(names, list | tuple) and len(names) > 0 and all(isinstance(name, str) for name in names)
    return np.array(names) if is_names else None


def _is_random(store: DatasetStore) -> bool:
    """Whether a sample differs from itself when it is read again."""
    probes = sorted({0, len(store) // 2, len(store) - 1})
    return any(not torch.equal(store.sample(index), store.sample(index)) for index in probes)


def _kept(store: DatasetStore, first: Tensor) -> PixelStore | FeatureStore:
    """All samples in memory, as they are."""
    is_picture = first.dtype == torch.uint8 and first.ndim == 3
    kind = np.uint8 if is_picture else np.float16 if first.dtype == torch.float16 else np.float32
    values = np.empty((len(store), *first.shape), dtype=kind)
    for start in range(0, len(store), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(store)))
        fetched = store.fetch(rows)
        values[rows] = (fetched * 255).round().byte().numpy() if is_picture else fetched.numpy()
    return PixelStore(values) if is_picture else FeatureStore(values)
