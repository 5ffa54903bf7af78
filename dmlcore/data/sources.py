"""What every data source gives: a table of samples and labels. The kinds of sources have modules of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.label_sets import LabelSets
from dmlcore.data.stores import Store, sample_digests

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
KINDS_OF_DATA = ("images", "features", "texts")


@dataclass
class Table:
    """All samples of a source.

    Attributes:
        kind: `images` (samples float32 [C, H, W] in 0..1), `features` (samples float32 [F]), or `texts` (samples uint8 [bytes],
            as `texts` has them).
        samples: where they lie.
        labels: int64 [N], an index into `class_names`.
        class_names: a name per class.
        sample_shape: (C, H, W) or (F,), or (bytes,) of texts.
        split: text [N] of `train`, `validation`, `test` where the data has one, else None.
        skipped: what was left out or read in an unexpected way, as sentences for the user.
        augmentation: changes a batch of training samples at random. None for none.
        sample_names: a name per sample, different within a class, that stays when samples are added, such as the path of its
            file. None: samples go by their numbers.
        split_note: what the source's own split means, a sentence for the user where it is used.
        class_groups: a group per class, such as the script of a character, by which classes can be parted. None for none.
        digests: gives uint64 [N] that follow from the content of each sample, where that is more than `samples` hold, such as
            files. None: they follow from the samples themselves.
        has_labels: whether the labels mean anything. Samples without labels are all of one class.
        label_sets: the labels of each class where samples have several; a class is the samples with the same labels. None: a
            class is a label.
        label_names: a name per label of the sets.
        levels: names of levels of coarser labels, from fine to coarse, and the group of each class at each.
        paths: the file of each sample. None: the samples are no files of their own.
        unreadable: by name why an image was left out, since it cannot be read.
    """

    kind: Literal["images", "features", "texts"]
    samples: Store
    labels: np.ndarray
    class_names: list[str]
    sample_shape: tuple[int, ...]
    split: np.ndarray | None = None
    skipped: list[str] = field(default_factory=list)
    augmentation: Augmentation | None = None
    sample_names: Sequence[str] | None = None
    split_note: str = ""
    class_groups: list[str] | None = None
    digests: Callable[[], np.ndarray] | None = None
    has_labels: bool = True
    label_sets: LabelSets | None = None
    label_names: list[str] = field(default_factory=list)
    levels: dict[str, list[str]] = field(default_factory=dict)
    paths: Sequence[str] | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    _content_digests: np.ndarray | None = field(default=None, init=False, repr=False)

    def content_digests(self) -> np.ndarray:
        """A number per sample, uint64 [N], by which it is known again wherever it stands; computed once."""
        if self._content_digests is None:
            self._content_digests = self.digests() if self.digests is not None else sample_digests(self.samples)
        return self._content_digests

    def names(self) -> Sequence[str]:
        """A name for every sample: `sample_names`, else their numbers."""
        return self.sample_names if self.sample_names is not None else [str(row) for row in range(len(self.labels))]


class DataSource(ABC):
    """Base of everything `--data` can name. A plugin registers subclasses by the hook `dmlcore_datasets`.

    Args:
        options: an instance of `Options`.
        image_size: what the user asked for, pixels, or None. Images in memory are resized later, a source of files may
            use it at once.
        default_image_size: the size to which a source resizes images of different sizes, when `image_size` is None.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    is_default: ClassVar[bool] = False
    """Whether it is the data where none is named. One source says so, and its subclasses do not inherit it."""
    reads: ClassVar[str] = ""
    """The paths it claims, in words for messages, such as `a .csv with path,label`. Empty: it goes by its name only."""

    gives_way: ClassVar[bool] = False
    """Whether another source that claims the same path goes before it, as one for folders of a certain form does."""

    needs_labels: bool = True
    """Whether data without labels, or of one class, are refused. `load` reads it; only embedding can do without."""

    def __init__(self, options: Any, *, image_size: int | None = None, default_image_size: int = 64) -> None:
        self.options = options
        self.image_size = image_size
        self.default_image_size = default_image_size

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Whether `--data PATH` means this source. One that claims paths has an option `path`, which the path becomes.
        A subclass claims none unless it says so itself.

        Args:
            path: of a file or folder that exists, or one with braces, `{...}`, which may mean several files.
        """
        return False

    @abstractmethod
    def load(self) -> Table:
        """Read the samples, or find out where they are.

        Raises:
            DataError: the data cannot be used.
        """

    def split(self, table: Table, seed: int) -> np.ndarray | None:
        """Text [N] of `train`, `validation`, `test`, or None when classes are to be split at random.

        Args:
            table: what `load` returned.
            seed: of the split, for sources that draw their own.
        """
        return table.split
