"""The page of what was found in data: samples to look through, by kind."""

from __future__ import annotations

from typing import Any

from dmlcore.reports.html import escape, page
from dmlcore.reports.strips import Sample, Strips
from dmlcore.reports.thumbnails import thumbnails
from dmlcore.serving.clean import Faults, Subject

MOST = 120  # faults of a kind that are shown
TITLES = {
    "duplicate": "Near duplicates",
    "label": "Labels that are likely wrong",
    "outlier": "Outliers",
    "overlap": "Classes that overlap",
}


def clean_page(subject: Subject, faults: Faults, name: str) -> bytes:
    """The page as a file's content.

    Args:
        subject: the data.
        faults: what was found in them.
        name: of the data.
    """
    dataset = subject.dataset
    strips = Strips(lambda positions: {} if dataset is None or subject.pictures is None else thumbnails(dataset, positions))
    sections = []
    for kind in faults.counts():
        of_kind = [fault for fault in faults.faults if fault.kind == kind]
        rows = [
            strips.strip(
                [_sample(subject, position) for position in (fault.position, fault.other) if position is not None],
                f"{fault.score:.3f}{': ' if fault.note else ''}{fault.note}",
            )
            for fault in of_kind[:MOST]
        ]
        more = len(of_kind) - MOST
        note = f"<p>{more:,} more are in the .csv.</p>" if more > 0 else ""
        sections.append((TITLES[kind], "\n".join(rows) + note))
    counts = ", ".join(f"{TITLES[kind].lower()}: {count:,}" for kind, count in faults.counts().items())
    about = f"{faults.samples:,} samples. {counts}. The surest stand first; look at them before you remove any."
    data: dict[str, Any] = strips.for_script()
    return page(f"Data {name}", f'<p class="about">{escape(about)}</p>', sections, data)


def _sample(subject: Subject, position: int) -> Sample:
    entries = subject.entries
    title = entries.path[position] if entries.path is not None else f"row {entries.row[position]}"
    label = entries.label[position] if entries.label is not None else title
    split = entries.columns["split"][position] if "split" in entries.columns else ""
    return Sample(position if subject.pictures is not None else None, label, split, title)
