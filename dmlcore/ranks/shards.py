"""Which classes are which rank's, where ranks divide the learnt vectors of a loss."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from dmlcore.ranks.current import CurrentGroup
from dmlcore.ranks.group import Group

_current = CurrentGroup()


@dataclass(frozen=True)
class Shard:
    """The classes that one rank holds. Ranges are those of `torch.chunk`, and of a `DTensor` with `Shard(0)`.

    Attributes:
        group: the ranks that divide the classes.
        classes: of all ranks.
        first, stop: the classes of this rank are first..stop - 1; there may be none.
    """

    group: Group
    classes: int
    first: int
    stop: int

    @classmethod
    def of(cls, classes: int, group: Group) -> Shard:
        """The part of this rank."""
        sizes = cls.sizes(classes, group.size)
        first = sum(sizes[: group.rank])
        return cls(group, classes, first, first + sizes[group.rank])

    @staticmethod
    def sizes(classes: int, ranks: int) -> tuple[int, ...]:
        """How many classes each rank holds."""
        size = -(-classes // ranks)
        return tuple(min(max(classes - rank * size, 0), size) for rank in range(ranks))

    def rows(self, each: int) -> slice:
        """This rank's rows of a table with `each` rows for each class."""
        return slice(self.first * each, self.stop * each)


def sharding(group: Group | None) -> AbstractContextManager[None]:
    """Losses that are made inside the block hold their classes of this rank only, and never those of all. None: of all."""
    return _current.within(group)


def sharding_group() -> Group | None:
    """The ranks that divide the classes of losses which are made now."""
    group = _current.group
    return None if group is None or group.size == 1 else group
