"""The samples of a data set by number. Everything the protocol looks at comes through here."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
from torch import Tensor

from dmlcore.data.opening import load_table
from dmlcore.data.sources import Table


class Samples:
    """Samples of a table.

    Args:
        table: of the data.

    Attributes:
        kind: `images` or `features`.
        shape: of a sample.
        labels: int64 `[N]`, classes of the table.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.kind = table.kind
        self.shape = table.sample_shape
        self.labels = table.labels

    def fetch(self, rows: np.ndarray) -> Tensor:
        """Float32 `[b, ...]`, without augmentation."""
        return self.table.samples.fetch(rows)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Samples of each class."""
        return np.bincount(self.labels, minlength=len(self.table.class_names)).tolist()


def open_samples(data: str, options: dict[str, Any], image_size: int | None = None) -> Samples:
    """The samples of a data set; a process reads it once.

    Args:
        data: a name or path, as `dmlcore.data.open_data`.
        options: of the source.
        image_size: side to bring images to, pixels, or None.

    Raises:
        ConfigError, DataError: as `dmlcore.data.open_data`.
    """
    return _opened(data, json.dumps(options, sort_keys=True), image_size)


@functools.lru_cache(maxsize=1)
def _opened(data: str, options: str, image_size: int | None) -> Samples:
    _, table = load_table(data, options=json.loads(options), image_size=image_size)
    return Samples(table)
