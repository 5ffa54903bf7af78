"""What data hold, in a few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from dmlcore.data.opening import load_table

_LISTED = 20  # classes at each end


def summary(data: Any, options: dict[str, Any] | None = None, image_size: int | None = None) -> dict[str, Any]:
    """Samples, classes, sizes and what is left out.

    Args:
        data: as for `open_data`.
        options: of the data set.
        image_size: side that images are resized to, pixels, or None.

    Returns:
        Plain values for JSON.

    Raises:
        DataError: the data cannot be used.
    """
    source, table = load_table(data, options=options, image_size=image_size, needs_labels=False)
    counts, names = np.bincount(table.labels, minlength=len(table.class_names)), table.class_names
    if table.label_sets is not None:  # a sample counts for each of its labels
        names = table.label_names
        counts = np.bincount(table.label_sets.select(table.labels).index, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    listed = [(names[label], int(counts[label])) for label in order]
    parts = {} if table.split is None else dict(zip(*np.unique(table.split, return_counts=True), strict=True))
    return {
        "source": source.name,
        "kind": table.kind,
        "sample_shape": list(table.sample_shape),
        "samples": len(table.labels),
        "in_memory": table.samples.in_memory,
        "classes": len(table.class_names) if table.has_labels else 0,
        "labels": len(table.label_names),
        "samples_per_class": {"least": int(counts.min()), "median": float(np.median(counts)), "most": int(counts.max())},
        "largest": listed[:_LISTED],
        "smallest": listed[::-1][:_LISTED],
        "split": {str(part): int(count) for part, count in parts.items()},
        "notes": list(table.skipped),
    }
