"""The processes that a launcher has started."""

from __future__ import annotations

from pathlib import Path


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
