"""Embeddings in a file as data with labels: their parts, queries and gallery, and several labels of a sample."""

from __future__ import annotations

import numpy as np

from dmlcore.data import ROLES, SPLIT_WORDS, FeatureStore, LabelledDataset, Table, named_sets, parted_labels, set_classes
from dmlcore.data.part_words import PARTS, check_roles, join_own_entries, rows_of_part, split_words
from dmlcore.data.stores import sample_digests
from dmlcore.serving.entries import Entries
from dmlcore.serving.inputs import Parts, parts_of

MEASURED_PARTS = ("validation", "test")
_BETWEEN = ";"  # between the names of several labels, as `dmlcore embed` writes them


def parts_of_entries(entries: Entries, name: str) -> Parts:
    """Embeddings in the parts that are measured: `validation` and `test` where a column `split` says so, or else `all`.

    Args:
        entries: N, each with a label.
        name: of the file.

    Raises:
        DataError: there are no labels, or queries without a gallery.
    """
    table, notes = _table(entries, entries.labels("an evaluation"))
    split, about_split = _split(entries, table)
    notes = [*entries.notes, *notes, *about_split]
    parts: dict[str, LabelledDataset] = {}
    if split is not None:
        for part in MEASURED_PARTS:
            rows, roles = rows_of_part(split, part)
            if len(rows):
                parts[part] = LabelledDataset(
                    table.samples, rows, table.labels[rows], table.class_names, table.sample_shape,
                    roles=roles, sets=table.label_sets, label_names=table.label_names,
                )  # fmt: skip
    if not parts:
        parts, _ = parts_of(table)
    names = entries.path if entries.path is not None else [str(row) for row in entries.row.tolist()]
    for part in parts.values():
        part.names = names
    return Parts(name, parts, notes, True, names, entries.path)


def _table(entries: Entries, labels: list[str]) -> tuple[Table, list[str]]:
    notes, several = [], any(_BETWEEN in label for label in set(labels))
    sets, label_names = None, []
    if several:
        named = named_sets([parted_labels(label) for label in labels])
        dense, class_names, sets = set_classes(named.sets, named.names)
        label_names = named.names
        notes = [f"labels with '{_BETWEEN}' in them are read as several labels of a sample"]
    else:
        names, dense = np.unique(np.array(labels, dtype=str), return_inverse=True)
        class_names = [str(label) for label in names]
    store = FeatureStore(np.asarray(entries.vectors))
    shape = (entries.vectors.shape[1],)
    return Table("features", store, dense.astype(np.int64), class_names, shape, label_sets=sets, label_names=label_names), notes


def _split(entries: Entries, table: Table) -> tuple[np.ndarray | None, list[str]]:
    """The part of each sample, text [N], empty for those in none; None where the file says none. And notes."""
    words = entries.columns.get("split")
    if words is None:
        return None, []
    words = np.asarray(words).astype(str)
    in_none = np.isin(words, ("", "none"))
    unknown = sorted({word for word in np.unique(words[~in_none]) if word.strip().lower() not in SPLIT_WORDS})
    if unknown:
        known = ", ".join((*PARTS, *ROLES))
        return None, [f"the column 'split' has words such as '{unknown[0]}' beside {known}, so all samples are measured"]
    split = np.full(len(words), "", dtype="<U10")
    if not in_none.all():
        split[~in_none] = split_words(words[~in_none], "the file")
    check_roles(set(split))

    def digests() -> np.ndarray:
        if entries.path is None:
            return sample_digests(table.samples)
        return np.unique(np.array(entries.path, dtype=str), return_inverse=True)[1].astype(np.uint64)  # a file is itself

    split, notes = join_own_entries(split, table.labels, digests)
    if not np.isin(split, (*MEASURED_PARTS, *ROLES)).any():
        return None, [*notes, "no sample is called validation, test, query or gallery, so all are measured"]
    return split, notes
