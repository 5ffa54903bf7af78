"""A close look at data before they are trained on: every picture is read. What is printed of it is in `commands/data`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dmlcore.data.copies import SIDE, exact_pairs, near_pairs
from dmlcore.data.encoded import EncodedImages, digest
from dmlcore.data.images import UNREADABLE, decode, read_header
from dmlcore.data.opening import load_table, split_by_source, undecoded
from dmlcore.data.part_words import PARTS, rows_of_part
from dmlcore.data.sources import Table
from dmlcore.data.stores import ImageFiles
from dmlcore.data.threads import for_each_row
from dmlcore.errors import DataError

FRACTIONS = (0.5, 0.15, 0.35)
_LISTED = 20  # pairs that are given by name
_CHUNK = 1024


def check_data(data: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is recognised in data, and what may be wrong with them.

    Args:
        data: as for `open_data`.
        options: of the data set.

    Returns:
        Plain values for JSON: the source, classes and parts, and of pictures those that cannot be read, their sizes, and pairs
        with the same content or nearly so.

    Raises:
        DataError: the data cannot be read at all.
    """
    source, table = load_table(data, options={**undecoded(data), **(options or {})}, needs_labels=False)
    notes = list(table.skipped)
    parts, roles, more = _parts(source, table, data)
    notes += more
    unreadable = dict(table.unreadable)
    sizes: np.ndarray | None = None
    greys = np.zeros((0, SIDE, SIDE), dtype=np.uint8)
    if isinstance(table.samples, ImageFiles):
        digests, greys, sizes, reasons = _read_all(table.samples.images)
        is_read = np.array([row not in reasons for row in range(len(digests))], dtype=bool)
        unreadable.update({table.samples.images.shown(row): reason for row, reason in sorted(reasons.items())})
    else:
        digests, is_read = table.content_digests(), np.ones(len(table.labels), dtype=bool)
        if table.kind == "images":
            greys = _small_greys(table)
            sizes = np.tile(np.array(table.sample_shape[1:])[::-1], (len(greys), 1))
    rows = np.flatnonzero(is_read)
    exact = rows[exact_pairs(digests[rows], parts[rows])]
    near = near_pairs(greys, is_read) if len(greys) else np.empty((0, 2), dtype=np.int64)
    near = near[digests[near[:, 0]] != digests[near[:, 1]]] if len(near) else near
    return {
        "source": source.name,
        "kind": table.kind,
        "samples": len(table.labels),
        "classes": len(table.class_names) if table.has_labels else 0,
        "smallest_class": _smallest(table, np.arange(len(table.labels))) if table.has_labels else None,
        "parts": {name: _part(table, np.flatnonzero(parts == number)) for number, name in enumerate(_names(parts))},
        **({"roles": roles} if roles else {}),
        "unreadable": unreadable,
        "sizes": None if sizes is None else _ranges(sizes[is_read]),
        "exact_copies": _told(exact, table, parts),
        "near_copies": _told(near, table, parts) if table.kind == "images" else None,
        "notes": notes,
    }


def _names(parts: np.ndarray) -> list[str]:
    """Names of the numbers of parts."""
    if (parts == 0).all():
        return ["all"]
    return [*PARTS, "no part"] if (parts == len(PARTS)).any() else list(PARTS)


def _parts(source: Any, table: Table, data: str) -> tuple[np.ndarray, dict[str, int], list[str]]:
    """The number of the part of each sample, int64 [N], as training would have it by default; all 0 where there is none. How
    many test samples are `queries` and in the `gallery`, where these differ; and notes."""
    numbers, counts = np.zeros(len(table.labels), dtype=np.int64), dict[str, int]()
    if not table.has_labels:
        return numbers, counts, []
    try:
        split, notes = split_by_source(source, table, FRACTIONS, 0, data)
    except DataError as error:
        return numbers, counts, [f"training would refuse these data: {error}"]
    numbers[:] = len(PARTS)
    for number, part in enumerate(PARTS):
        rows, roles = rows_of_part(split, part)
        numbers[rows] = number
        if roles is not None:
            counts = {"queries": int((roles != "gallery").sum()), "gallery": int((roles != "query").sum())}
    return numbers, counts, notes


def _read_all(images: EncodedImages) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
    """Of every image the digest of its bytes (uint64 [N]), a small grey picture (uint8 [N, 9, 9]), width and height (int64
    [N, 2]); and by row why one cannot be read."""
    count = len(images)
    digests, greys = np.zeros(count, dtype=np.uint64), np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    sizes, reasons = np.zeros((count, 2), dtype=np.int64), dict[int, str]()

    def look(row: int) -> None:
        try:
            opened = images.opened(row)
            if isinstance(opened, str):
                with open(opened, "rb") as file:
                    content = file.read()
            else:
                content = opened.read()
            digests[row] = digest(content)
            header = read_header(io.BytesIO(content))
            sizes[row] = header.width, header.height
            greys[row] = decode(io.BytesIO(content), (SIDE, SIDE), 1)[0]
        except UNREADABLE as error:
            reasons[row] = "no image" if str(error).startswith("cannot identify") else str(error)

    for_each_row(count, look, "reading all pictures")
    return digests, greys, sizes, reasons


def _small_greys(table: Table) -> np.ndarray:
    """The same of images that are in memory, uint8 [N, 9, 9]."""
    parts = []
    for start in range(0, len(table.labels), _CHUNK):
        batch = table.samples.fetch(np.arange(start, min(start + _CHUNK, len(table.labels)))).mean(1, keepdim=True)
        small = torch.nn.functional.interpolate(batch, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        parts.append((small[:, 0] * 255).round().clamp(0, 255).byte().numpy())
    return np.concatenate(parts)


def _smallest(table: Table, rows: np.ndarray) -> dict[str, Any] | None:
    labels, counts = np.unique(table.labels[rows], return_counts=True)
    if not len(labels):
        return None
    place = int(counts.argmin())
    return {"name": table.class_names[labels[place]], "samples": int(counts[place])}


def _part(table: Table, rows: np.ndarray) -> dict[str, Any]:
    classes = len(np.unique(table.labels[rows])) if table.has_labels else 0
    return {"samples": len(rows), "classes": classes, "smallest_class": _smallest(table, rows) if table.has_labels else None}


def _ranges(sizes: np.ndarray) -> dict[str, list[float]]:
    """Least, median and most of widths and heights, pixels."""
    return {
        name: [int(column.min()), float(np.median(column)), int(column.max())]
        for name, column in zip(("width", "height"), sizes.T, strict=True)
        if len(column)
    }


def _told(pairs: np.ndarray, table: Table, parts: np.ndarray) -> dict[str, Any]:
    """Pairs in numbers, and some by name: those between two parts first, then those of two classes."""
    names, labels, words = table.names(), table.labels, _names(parts)
    first, second = parts[pairs[:, 0]], parts[pairs[:, 1]]
    is_between, is_other = first != second, labels[pairs[:, 0]] != labels[pairs[:, 1]]
    between = {}
    for low, high in _combinations(len(words)):
        of_both = pairs[(np.minimum(first, second) == low) & (np.maximum(first, second) == high)]
        if len(of_both):
            between[f"{words[low]} and {words[high]}"] = len(np.unique(of_both[parts[of_both] == high]))
    order = np.lexsort((~is_other, ~is_between))[:_LISTED]
    return {
        "samples": len(np.unique(pairs)),
        "between_parts": between,
        "of_two_classes": len(np.unique(pairs[is_other])) if table.has_labels else 0,
        "pairs": [
            [
                {"name": str(names[row]), "class": table.class_names[labels[row]], "part": words[parts[row]]}
                for row in pairs[place].tolist()
            ]
            for place in order.tolist()
        ],
    }


def _combinations(count: int) -> Iterator[tuple[int, int]]:
    return ((low, high) for high in range(count) for low in range(high))
