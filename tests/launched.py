"""The processes that a launcher has started."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def processes_of(parent: int) -> list[int]:
    """The processes that a launcher has started, by their rank."""
    children: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            text, env = (entry / "stat").read_text(), (entry / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and int(text.rpartition(")")[2].split()[1]) == parent and b"LOCAL_RANK=" in env:
            children[int(env.split(b"LOCAL_RANK=")[1].split(b"\0")[0])] = int(entry.name)
    return [children[rank] for rank in sorted(children)]


def check_refusals(outcomes: list[dict[str, Any]], words: dict[str, tuple[str, ...]]) -> None:
    """Every rank refused what it should, in a line that has the words for it: by case, one for each rank."""
    for rank, outcome in enumerate(outcomes):
        assert set(outcome["refusals"]) == set(words)
        for name, text in outcome["refusals"].items():
            assert words[name][rank] in text and "\n" not in text, (name, text)
