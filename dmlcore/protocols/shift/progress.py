"""The picture of how splits were found: Fréchet distance against swaps, removals marked, the chosen splits ringed."""

from __future__ import annotations

from pathlib import Path

from dmlcore.data.split_files import SplitFile
from dmlcore.reports.pictures import pyplot, save
from dmlcore.texts import printable

_LOOKS = {
    "easier": ("tab:green", "o", "made easier"),
    "swap": ("tab:blue", "o", "swapped"),
    "removal": ("tab:red", "x", "left out"),
}


def draw_progress(file: SplitFile, path: Path) -> Path:
    """Draw the divisions of a file of splits. Imported splits, whose divisions are not known, are drawn alone.

    Args:
        file: with at least one split.
        path: of the .svg file.

    Returns:
        The path.
    """
    figure, axes = pyplot().subplots(figsize=(6.4, 3.6))
    along = [(step["swapped"] + step["removed"], step["fid"]) for step in file.progress]
    axes.plot(*zip(*along, strict=True), color="0.7", linewidth=1, zorder=1) if along else None
    for stage, (colour, marker, label) in _LOOKS.items():
        points = [point for point, step in zip(along, file.progress, strict=True) if step["stage"] == stage]
        if points:
            axes.scatter(*zip(*points, strict=True), s=14, color=colour, marker=marker, label=label, zorder=2)
    for split in file.splits:
        at = split.swapped + split.removed
        if split.id == file.default:
            axes.scatter([at], [split.fid], s=22, color="black", marker="D", label="default", zorder=3)
        axes.scatter([at], [split.fid], s=90, facecolors="none", edgecolors="black", linewidths=1, zorder=3)
        left = at < 0.75 * max(s.swapped + s.removed for s in file.splits)
        offset = (8, -10) if left else (-8, 4)
        axes.annotate(
            printable(split.id), (at, split.fid), offset, textcoords="offset points", fontsize=7, ha="left" if left else "right"
        )
    axes.set_xlabel("classes of each side exchanged, then left out")
    axes.set_ylabel("FID between the sides")
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return save(figure, path)
