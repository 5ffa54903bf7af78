"""What the groups of settings share: fields whose key is another than their name, and checks of several fields."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from dmlcore.config import check_range


def setting(key: str, default: Any) -> Any:
    """A field whose key is not its name: the key must say more, since it stands without the group."""
    return field(default=default, metadata={"key": key})


def check_each(settings: Any, names: tuple[str, ...], **limits: float) -> None:
    """Check each of some fields, as `check_range` does."""
    for name in names:
        check_range(name, getattr(settings, name), **limits)
