"""Learning without labels: every sample is a class of its own, seen by several views. The sampler that repeats samples in a
batch is a plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.datasets import LabelledDataset
from dmlcore.data.path_lists import LazyTexts
from dmlcore.data.splits import Splits
from dmlcore.errors import ConfigError


class ViewStore:
    """Views of samples that stay the same: sample `i` has the views `i * views` to `i * views + views - 1`.

    Args:
        part: of N samples, which training would change at random.
        views: of each sample.
        seed: of the random numbers. Each view has a stream of its own.
    """

    def __init__(self, part: LabelledDataset, views: int, seed: int) -> None:
        self.part = part
        self.views = views
        self.seed = seed
        self.in_memory = part.in_memory

    def __len__(self) -> int:
        return len(self.part) * self.views

    def fetch(self, indices: np.ndarray) -> Tensor:
        """The same view for a number, whatever else is fetched."""
        parts = []
        for number in indices.tolist():
            seed = int(np.random.SeedSequence((self.seed, 9, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
            generator = torch.Generator().manual_seed(seed)
            parts.append(self.part.batch([number // self.views], augment=True, generator=generator))
        return torch.cat(parts) if parts else self.part.batch([])


class ViewNames(LazyTexts):
    """The name of each view: that of its sample.

    Args:
        names: of N samples.
        views: of each.
    """

    def __init__(self, names: Sequence[str], views: int) -> None:
        self.names = names
        self.views = views

    def __len__(self) -> int:
        return len(self.names) * self.views

    def text(self, row: int) -> str:
        return str(self.names[row // self.views])


def with_views(splits: Splits, views: int, seed: int) -> Splits:
    """The parts of a run that learns from views.

    Each training sample is a class of its own. Validation and test keep their labels where they have any. Without labels
    they hold fixed views, and the right answers of a view are the other views of its sample.

    Args:
        splits: as the data were opened.
        views: of each sample.
        seed: of the fixed views.

    Raises:
        ConfigError: nothing changes the samples, so that all views would be the same.
    """
    train = splits.train
    if not train.has_random_changes:
        raise ConfigError(
            f"views is {views}, but nothing changes the samples of '{splits.name}' at random, so all views of one would be the"
            f" same. Name changes by --transforms, or let the data bring them"
        )
    notes = [f"labels are not used: each training sample is a class of its own, seen by {views} views"]
    numbers = [str(row) for row in range(len(train.samples))]
    by_sample = LabelledDataset(train.samples, train.rows, train.rows, numbers, train.sample_shape, train.augmentation)
    by_sample.names = train.names
    if splits.has_labels:
        by_sample.finest = train  # what tells which test classes were seen
        return replace(splits, train=by_sample, notes=[*splits.notes, *notes])
    notes.append(f"without labels, validation and test ask of {views} fixed views of a sample which belong together")
    held_out = {part: _viewed(getattr(splits, part), train, numbers, views, seed) for part in ("validation", "test")}
    names = ViewNames(splits.sample_names, views)
    return replace(splits, train=by_sample, **held_out, notes=[*splits.notes, *notes], sample_names=names, paths=None)


def _viewed(part: LabelledDataset, train: LabelledDataset, numbers: list[str], views: int, seed: int) -> LabelledDataset:
    everyone = np.arange(len(part.samples))  # numbered as in the table, so that a sample keeps its views in any part
    whole = LabelledDataset(part.samples, everyone, everyone, numbers, part.sample_shape, train.augmentation)
    rows = (part.rows[:, None] * views + np.arange(views)).reshape(-1)
    viewed = LabelledDataset(ViewStore(whole, views, seed), rows, np.repeat(part.rows, views), numbers, part.sample_shape)
    viewed.names = ViewNames(part.names, views) if len(part.names) else ()
    return viewed
