"""Losses between the samples of a batch, or between a batch and references."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from dmlcore.errors import ConfigError
from dmlcore.losses.base import LossOptions
from dmlcore.losses.mining import Miner, build_miner
from dmlcore.losses.rows import RowLoss


@dataclass(frozen=True, kw_only=True)
class PairOptions(LossOptions):
    """Options of every loss between samples."""

    miner: str | None = None
    """Which pairs count, by a miner's name with options where wanted, as in `multi_similarity(epsilon=0.2)`; `none`: all."""


class PairLoss(RowLoss):
    """A loss between the samples of a batch, or between a batch and references.

    Args:
        options, options_by_name: as `Loss`. `miner` may be a `Miner` too.
    """

    Options: ClassVar[type] = PairOptions

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        is_miner = isinstance(options_by_name.get("miner"), Miner)
        miner = options_by_name.pop("miner") if is_miner else None
        super().__init__(options, **options_by_name)
        self.miner = build_miner(getattr(self.options, "miner", None))
        if miner is not None:
            self.use_miner(miner)

    def use_miner(self, miner: Miner | str | None) -> None:
        """Mine from now on with this one.

        Raises:
            ConfigError: the loss's options know no miner.
        """
        if "miner" not in {field.name for field in fields(self.options)}:
            raise ConfigError(f"{self.name} takes no miner; its Options must derive from PairOptions")
        self.miner = build_miner(miner)
        self.options = replace(self.options, miner=None if self.miner is None else self.miner.text)
