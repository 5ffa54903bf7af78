"""A part of the data as a PyTorch data set: samples with labels. How batches are composed is in `samplers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.label_sets import LabelSets
from dmlcore.data.sources import Augmentation
from dmlcore.data.stores import CroppingStore, Store
from dmlcore.errors import ConfigError


class LabelledDataset(torch.utils.data.Dataset):
    """Some samples of a table.

    Args:
        samples: all samples of the table.
        rows: int64 [n], the samples that belong here.
        labels: int64 [n], their classes in the table.
        class_names: of the whole table.
        sample_shape: (C, H, W) or (F,).
        augmentation: changes training batches. None for none.
        roles: text [n] of `query`, `gallery` and `test` (both): how samples take part in an evaluation. None: all are both.
        sets: the labels of each class of the table where samples have several.
        label_names: of the labels of the sets.
        levels: by level of coarser labels, from fine to coarse, the group of each class of the table.

    Attributes:
        labels: int64 [n], ids in the table's classes.
        dense_labels: int64 [n], 0..num_classes - 1.
        table_names: a name per class of the table.
        class_names: a name per dense label.
        num_classes: of this part.
        sets: labels of each dense class where samples have several, else None.
        judged: bool [L], the labels that count in an evaluation; None: all do.
        levels: as given.
        finest: the same samples with their finest labels, where these are coarser ones.
        names: of all samples of the table, by `rows`: paths of files, else their names in the data. Empty: nobody says.
        sample_shape: of one sample.
        in_memory: fetching is cheap, so that worker processes would not pay.
    """

    def __init__(
        self,
        samples: Store,
        rows: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        sample_shape: tuple[int, ...],
        augmentation: Augmentation | None = None,
        roles: np.ndarray | None = None,
        sets: LabelSets | None = None,
        label_names: Sequence[str] = (),
        levels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        assert len(rows) == len(labels)
        self.samples = samples
        self.rows = rows
        self.labels = labels
        present, dense = np.unique(labels, return_inverse=True)
        self.dense_labels = dense.astype(np.int64)
        self.table_names = class_names
        self.class_names = [str(class_names[label]) for label in present]
        self.num_classes = len(present)
        self.sample_shape = sample_shape
        self.augmentation = augmentation
        self.roles = roles
        self.sets = None if sets is None else sets.select(present)
        self.label_names = label_names
        self.judged: np.ndarray | None = None
        self.levels = dict(levels or {})
        self.finest = self
        self.names: Sequence[str] = ()

    def own_names(self) -> list[str]:
        """The name of each sample, none where nobody says them."""
        return [str(self.names[row]) for row in self.rows.tolist()] if len(self.names) else []

    def at_level(self, level: str) -> LabelledDataset:
        """The same samples with the labels of a coarser level.

        Raises:
            ConfigError: there is no such level.
        """
        if level not in self.levels:
            known = f"they have {', '.join(self.levels)}" if self.levels else "they have none"
            raise ConfigError(f"there is no level '{level}' of the labels; {known}. The option `levels` of the data names them")
        names, groups = np.unique(np.array(self.levels[level]), return_inverse=True)
        dataset = LabelledDataset(
            self.samples,
            self.rows,
            groups.astype(np.int64)[self.labels],
            [str(name) for name in names],
            self.sample_shape,
            self.augmentation,
            self.roles,
        )
        dataset.finest = self
        return dataset

    def labels_by_level(self) -> np.ndarray:
        """int64 [n, levels], from the finest labels to the coarsest."""
        return np.stack([self.labels, *(self.at_level(level).labels for level in self.levels)], axis=1)

    @classmethod
    def joined(cls, parts: Sequence[LabelledDataset]) -> LabelledDataset:
        """The samples of some parts of one table, at least one, in the order of the table and without augmentation."""
        rows = np.concatenate([part.rows for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        order = np.argsort(rows, kind="stable")
        first = parts[0]
        return cls(first.samples, rows[order], labels[order], first.table_names, first.sample_shape)

    def between(self, start: int, end: int) -> LabelledDataset:
        """The samples at some positions, without augmentation."""
        return self._at(slice(start, end))

    def augmented(self, augmentation: Augmentation | None) -> LabelledDataset:
        """The same samples with an augmentation."""
        return LabelledDataset(self.samples, self.rows, self.labels, self.table_names, self.sample_shape, augmentation)

    def spread(self, most: int) -> LabelledDataset:
        """At most `most` of the samples, evenly spread over the data set, without augmentation."""
        return self._at(np.unique(np.linspace(0, max(len(self) - 1, 0), min(most, len(self))).round().astype(np.int64)))

    def spread_classes(self, most: int, of_a_class: int) -> LabelledDataset:
        """About `most` samples, of classes that are evenly spread over all: of each the first `of_a_class`, or more where
        there are few classes. Without augmentation."""
        if len(self) <= most:
            return self.spread(most)
        order = np.argsort(self.labels, kind="stable")
        sizes = np.unique(self.labels, return_counts=True)[1]  # of the classes in this order
        place_in_class = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        of_a_class = max(of_a_class, -(-most // len(sizes)))
        count = min(len(sizes), max(1, int(most / np.minimum(sizes, of_a_class).mean())))
        is_chosen = np.zeros(len(sizes), bool)
        is_chosen[np.linspace(0, len(sizes) - 1, count).round().astype(np.int64)] = True
        is_drawn = np.repeat(is_chosen, sizes) & (place_in_class < of_a_class)
        return self._at(np.sort(order[is_drawn]))

    def _at(self, positions: np.ndarray | slice) -> LabelledDataset:
        """The samples at some positions, without augmentation."""
        return LabelledDataset(self.samples, self.rows[positions], self.labels[positions], self.table_names, self.sample_shape)

    @property
    def queries(self) -> np.ndarray:
        """Positions of the samples that are queries, int64 [q]."""
        return np.arange(len(self)) if self.roles is None else np.flatnonzero(self.roles != "gallery")

    @property
    def references(self) -> np.ndarray:
        """Positions of the samples among which answers are looked for, int64 [r]."""
        return np.arange(len(self)) if self.roles is None else np.flatnonzero(self.roles != "query")

    @property
    def num_labels(self) -> int:
        """How many labels there are: the classes, or where samples have several, those that count in an evaluation."""
        return self.num_classes if self.sets is None else len(np.unique(self.judged_sets().index))

    def judged_sets(self) -> LabelSets:
        """The labels of each sample that count in an evaluation, where samples have several."""
        assert self.sets is not None
        sets = self.sets if self.judged is None else self.sets.only(self.judged)
        return sets.select(self.dense_labels)

    def has_answer(self) -> np.ndarray:
        """Whether a query has a right answer among the references, bool [q]; it is none of its own."""
        queries, references = self.queries, self.references
        is_reference = np.isin(queries, references)
        if self.sets is None:
            counts = np.bincount(self.dense_labels[references], minlength=self.num_classes)
            return counts[self.dense_labels[queries]] > is_reference
        sets = self.judged_sets()
        counts = np.bincount(sets.select(references).index, minlength=sets.count)
        asked = sets.select(queries)
        of_query = np.repeat(np.arange(len(queries)), asked.sizes)
        return np.bincount(of_query, counts[asked.index] > is_reference[of_query], minlength=len(queries)) > 0

    @property
    def in_memory(self) -> bool:
        return self.samples.in_memory

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One sample, float32 of `sample_shape`, and its dense label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.batch([index])[0], int(self.dense_labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Several samples at once, as a `DataLoader` asks for them."""
        return list(zip(self.batch(indices), self.dense_labels[np.asarray(indices)].tolist(), strict=True))

    @property
    def has_random_changes(self) -> bool:
        """Whether a batch for training changes at random."""
        return self.augmentation is not None or (isinstance(self.samples, CroppingStore) and self.samples.crop is not None)

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        augment: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples float32 [b, ...].

        Args:
            indices: positions in this part.
            augment: change them at random, if the data has an augmentation or random crops.
            generator: of the random numbers, on the CPU. Needed with `augment`.
        """
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        if not augment:
            return self.samples.fetch(rows)
        assert generator is not None, "augmentation needs a generator"
        if isinstance(self.samples, CroppingStore) and self.samples.crop is not None:
            batch = self.samples.fetch_crops(rows, generator)
        else:
            batch = self.samples.fetch(rows)
        return batch if self.augmentation is None else self.augmentation(batch, generator)
