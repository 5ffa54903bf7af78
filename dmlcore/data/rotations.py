"""Quarter turns of pictures as further classes: a picture turned by 90, 180 or 270 degrees shows another class than the
upright one, so that a network meets four times as many classes.

Source: Lee, Hwang, Shin, "Self-supervised Label Augmentation via Input Transformations", ICML 2020, where the joint label of
class and turn is what a classifier learns. Here every loss learns it, and embeddings are of upright pictures only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.datasets import LabelledDataset
from dmlcore.data.path_lists import LazyTexts
from dmlcore.data.splits import Splits
from dmlcore.data.stores import CroppingStore, Store
from dmlcore.data.views import ViewNames
from dmlcore.errors import ConfigError

TURNS = 4


class TurnedStore:
    """Samples in four turns: number `4 i + t` is sample `i` turned by `90 t` degrees, counter-clockwise.

    Args:
        samples: square pictures.
    """

    def __init__(self, samples: Store) -> None:
        self.samples = samples
        self.in_memory = samples.in_memory

    def __len__(self) -> int:
        return TURNS * len(self.samples)

    @property
    def crop(self) -> Any:
        """The random crops of the upright pictures, if there are."""
        return getattr(self.samples, "crop", None)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """Turned pictures float32 [b, C, H, H]."""
        return self._turned(self.samples.fetch(indices // TURNS), indices)

    def fetch_crops(self, indices: np.ndarray, generator: torch.Generator) -> Tensor:
        """Turned random crops float32 [b, C, H, H]; only where there is a `crop`."""
        assert isinstance(self.samples, CroppingStore)
        return self._turned(self.samples.fetch_crops(indices // TURNS, generator), indices)

    def _turned(self, upright: Tensor, indices: np.ndarray) -> Tensor:
        turns = torch.from_numpy(indices % TURNS)
        turned = upright.clone()
        for turn in range(1, TURNS):
            rows = turns == turn
            turned[rows] = torch.rot90(upright[rows], turn, (2, 3))
        return turned


class TurnedNames(LazyTexts):
    """The name of each class in each turn.

    Args:
        names: of C classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return TURNS * len(self.names)

    def text(self, row: int) -> str:
        return f"{self.names[row // TURNS]}, turned by {90 * (row % TURNS)} degrees"


def with_rotated_classes(splits: Splits) -> Splits:
    """The parts of a run whose training classes are turned. Validation and test stay as they are.

    Args:
        splits: as the data were opened.

    Raises:
        ConfigError: the samples are no square pictures, or they have several labels.
    """
    train = splits.train
    shape = train.sample_shape
    if splits.kind != "images" or shape[-1] != shape[-2]:
        what = f"{splits.kind} {tuple(shape)}" if splits.kind != "images" else f"images of {shape[-2]} x {shape[-1]}"
        raise ConfigError(f"rotated_classes turns square pictures, but '{splits.name}' has {what}. Leave it out")
    if train.sets is not None:
        raise ConfigError(
            f"rotated_classes needs one label per sample, but those of '{splits.name}' have several. Leave it out"
        )
    turns = np.arange(TURNS)
    turned = LabelledDataset(
        TurnedStore(train.samples),
        (train.rows[:, None] * TURNS + turns).reshape(-1),
        (train.labels[:, None] * TURNS + turns).reshape(-1),
        TurnedNames(train.table_names),
        shape,
        train.augmentation,
    )
    turned.finest = train.finest
    turned.names = ViewNames(train.names, TURNS) if len(train.names) else ()
    note = f"each of the {train.num_classes} training classes is a class in four turns: {turned.num_classes} are learnt"
    return replace(splits, train=turned, notes=[*splits.notes, note])
