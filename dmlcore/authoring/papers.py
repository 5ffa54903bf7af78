"""The table of all built-in losses, miners and weightings with their full names and papers: `dmlcore plugins papers`."""

from __future__ import annotations

from pathlib import Path

from dmlcore.authoring.pages import write_between
from dmlcore.description import describe_components

BEGIN, END = "<!-- papers: begin -->", "<!-- papers: end -->"
TITLES = {"loss": "Losses", "miner": "Miners", "weighting": "Weightings"}


def papers() -> str:
    """The tables as Markdown: name, full name, paper, names in other libraries, and for losses where they are fused."""
    entries = [entry for entry in describe_components() if entry["owner"] == "dmlcore"]
    parts = []
    for kind, title in TITLES.items():
        columns = ["Name", "Full name", "Paper", "Also called"] + ["Fused"] * (kind == "loss")
        lines = [f"## {title}", "", _row(columns), _row(["---"] * len(columns))]
        for entry in entries:
            if entry["kind"] == kind:
                aliases = ", ".join(f"`{alias}`" for alias in entry["aliases"])
                cells = [f"`{entry['name']}`", entry["title"], entry["paper"], aliases]
                lines.append(_row(cells + [_fused(entry)] * (kind == "loss")))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write_papers(path: str | Path) -> None:
    """Put the tables between the marks of a Markdown file, in place of what stands there.

    Raises:
        ConfigError: the file cannot be read, or lacks the marks.
    """
    write_between(path, BEGIN, END, papers())


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fused(entry: dict) -> str:
    # Whether this machine has a GPU, or the extension at all, is no property of a loss.
    return "yes" if entry.get("has_fused_form") else "no"
