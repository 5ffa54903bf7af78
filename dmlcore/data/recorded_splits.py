"""The split of a run as its folder keeps it: the part of every sample by the name of its class and by its content. So data may
grow, shrink or be put in another order without a sample changing its part.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data.datasets import LabelledDataset
from dmlcore.data.label_sets import LabelSets
from dmlcore.data.part_words import PARTS, ROLES
from dmlcore.data.sources import Table
from dmlcore.errors import DataError
from dmlcore.seals import seal, unseal

FORMAT = "dmlcore-run-split-1"
LEFT_OUT = "left out"  # of the split that the run was made with, such as a class that a file of splits does not name
_NAMED = 3  # classes named in a note


@dataclass(frozen=True)
class Entries:
    """Samples of one part, in the order they are trained on or measured in.

    Attributes:
        labels: int64 [n], an index into the class names of the split.
        digests: uint64 [n], of their content.
    """

    labels: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True)
class RecordedSplit:
    """The parts of a run's data.

    Attributes:
        data: what was trained on, for messages.
        class_names: of the data when the run was made, in their order.
        parts: `train`, `validation`, `test` and `left out`. `query` and `gallery`, where the data have them, belong to the
            test part.
    """

    data: str
    class_names: tuple[str, ...]
    parts: dict[str, Entries]

    @classmethod
    def of(cls, table: Table, split: np.ndarray, data: str) -> RecordedSplit:
        """The split of a table.

        Args:
            table: of the data.
            split: text [N], the part of every sample; empty: none.
            data: its name.
        """
        digests = table.content_digests()
        parts = {}
        for part in (*PARTS, LEFT_OUT, *ROLES):
            rows = np.flatnonzero(split == ("" if part == LEFT_OUT else part))
            if part in ROLES and not len(rows):
                continue
            parts[part] = Entries(table.labels[rows], digests[rows])
        return cls(data, tuple(table.class_names), parts)

    def datasets(self, table: Table, *, is_whole: bool = False) -> tuple[dict[str, LabelledDataset], list[str]]:
        """The samples of each part in a table, and notes on what is new or gone. What is new is in no part, but in `rest`.

        Args:
            table: of the data as it is now.
            is_whole: refuse data that lack a sample of the run.

        Returns:
            Data sets by part, and `rest`, with the class names, the labels and the order of the run; notes for the user. New
            classes have the labels behind those of the run.

        Raises:
            DataError: samples that now belong to another class; a sample that is gone, with `is_whole`; nothing that is known.
        """
        rows, left_over = self._rows(table)
        self._check_classes(table, rows, left_over)
        gone = {part: int((rows[part] < 0).sum()) for part in rows}
        missing, count = sum(gone.values()), sum(map(len, rows.values()))
        if missing == count:
            raise DataError(
                f"none of the {count:,} samples that the run was made with is in '{self.data}' now: the data were changed."
                f" To measure the run on them all the same, name a copy of them as other data"
            )
        if missing and is_whole:
            lost = {self.class_names[label] for part in rows for label in self.parts[part].labels[rows[part] < 0]}
            raise DataError(
                f"{missing:,} of the {count:,} samples that the run was made with are no longer in '{self.data}'"
                f" ({_listed(sorted(lost))}), so it cannot be continued exactly. Put them back, or start a new run"
            )
        notes = self._notes(table, left_over)
        if missing:
            shares = ", ".join(f"{number:,} {part}" for part, number in gone.items() if number)
            notes.append(f"{missing:,} samples that the run was made with are no longer in the data: {shares}")
        names, labels = self._named(table)
        own = np.full(len(names), -1, dtype=np.int64)  # the number that the table has for a class
        own[labels] = table.labels
        label_sets = None if table.label_sets is None else _renumbered(table.label_sets, own)
        levels = {level: [groups[place] if place >= 0 else "" for place in own] for level, groups in table.levels.items()}
        sets = {}
        for part in PARTS:
            words = [part, *(role for role in ROLES if part == "test" and role in rows)]
            present = [rows[word][rows[word] >= 0] for word in words]
            here = np.concatenate(present)
            roles = np.repeat(words, [len(some) for some in present]) if len(words) > 1 else None
            sets[part] = LabelledDataset(
                table.samples,
                here,
                labels[here],
                names,
                table.sample_shape,
                table.augmentation,
                roles,
                label_sets,
                table.label_names,
                levels,
            )
        rest = np.concatenate([rows[LEFT_OUT][rows[LEFT_OUT] >= 0], left_over])
        return {**sets, "rest": LabelledDataset(table.samples, rest, labels[rest], names, table.sample_shape)}, notes

    def _named(self, table: Table) -> tuple[list[str], np.ndarray]:
        """The names of the run's classes and of new ones behind them, and the labels of a table among these."""
        number = {name: label for label, name in enumerate(_distinct(self.class_names))}
        new_names = [name for name in _distinct(table.class_names) if name not in number]
        number.update({name: len(self.class_names) + place for place, name in enumerate(new_names)})
        labels = np.array([number[name] for name in _distinct(table.class_names)], dtype=np.int64)[table.labels]
        return [*self.class_names, *(name for name, _ in new_names)], labels

    def trained_on(self, table: Table) -> np.ndarray:
        """Bool [N]: which samples of a table, of whatever class, have the content of one that was trained on."""
        return np.isin(table.content_digests(), self.parts["train"].digests)

    def _rows(self, table: Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The row of each entry, int64 by part, -1 where it is gone, and the rows that no entry has."""
        number = {name: label for label, name in enumerate(_distinct(self.class_names))}
        own_label = np.array([number.get(name, -1) for name in _distinct(table.class_names)], dtype=np.int64)
        entries = list(self.parts.values())
        labels = np.concatenate([entry.labels for entry in entries])
        digests = np.concatenate([entry.digests for entry in entries])
        matched, left_over = _matched((labels, digests), (own_label[table.labels], table.content_digests()))
        ends = np.cumsum([len(entry.labels) for entry in entries])[:-1]
        return dict(zip(self.parts, np.split(matched, ends), strict=True)), left_over

    def _check_classes(self, table: Table, rows: dict[str, np.ndarray], left_over: np.ndarray) -> None:
        """Refuse samples that were in one class when the run was made, and are in another one now."""
        class_of = {}
        for part, entries in self.parts.items():
            is_gone = rows[part] < 0
            class_of.update(zip(entries.digests[is_gone].tolist(), entries.labels[is_gone].tolist(), strict=True))
        moved = [(row, class_of[digest]) for row, digest in _with(table, left_over) if digest in class_of]
        if moved:
            row, label = moved[0]
            raise DataError(
                f"{len(moved):,} samples of '{self.data}' are in another class than when the run was made, such as one of"
                f" '{self.class_names[label]}' that is now in '{table.class_names[table.labels[row]]}': a class was renamed or"
                f" relabelled. Undo that, or train again"
            )

    def _notes(self, table: Table, left_over: np.ndarray) -> list[str]:
        own = set(self.class_names)
        is_new = np.array([name not in own for name in table.class_names])[table.labels[left_over]]
        notes = []
        for rows, kind in ((left_over[is_new], "new classes"), (left_over[~is_new], "classes of the run")):
            names = [table.class_names[label] for label in np.unique(table.labels[rows])]
            if names:
                counts = f"{len(rows):,} samples of {len(names):,} {kind}"
                notes.append(f"new since the run was made, and left out: {counts} ({_listed(names)})")
        return notes

    def to_json(self) -> bytes:
        """The content of a file, with a checksum of itself."""
        parts = {
            part: {"labels": entries.labels.tolist(), "digests": entries.digests.astype(">u8").tobytes().hex()}
            for part, entries in self.parts.items()
        }
        content = {"format": FORMAT, "data": self.data, "class_names": list(self.class_names), "parts": parts}
        return (json.dumps(seal(content), ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "surrogatepass")

    @classmethod
    def read(cls, path: Path) -> RecordedSplit:
        """Read and check a file.

        Raises:
            DataError: it cannot be read, or is damaged.
        """
        try:
            return cls.of_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"cannot read the split of the run, {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"the split of the run, {path}, is damaged ({reason}), so nobody can say which classes were trained on."
                f" Put it back, or train again"
            ) from error

    @classmethod
    def of_json(cls, content: bytes) -> RecordedSplit:
        """From what `to_json` gave.

        Raises:
            ValueError and others of its kind: it is damaged.
        """
        body, is_sealed = unseal(json.loads(content.decode("utf-8", "surrogatepass")))
        if not is_sealed:
            raise ValueError("it has no checksum")
        if body["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        names = tuple(map(str, body["class_names"]))
        words = (*PARTS, LEFT_OUT, *(role for role in ROLES if role in body["parts"]))
        parts = {part: _entries(body["parts"][part], len(names)) for part in words}
        return cls(str(body["data"]), names, parts)


def _entries(value: Any, classes: int) -> Entries:
    labels = np.asarray(value["labels"], dtype=np.int64)
    digests = np.frombuffer(bytes.fromhex(value["digests"]), dtype=">u8").astype(np.uint64)
    if labels.shape != digests.shape or ((labels < 0) | (labels >= classes)).any():
        raise ValueError("its labels and digests do not fit together")
    return Entries(labels, digests)


def _matched(entries: tuple[np.ndarray, np.ndarray], rows: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each entry the row of equal label and digest, int64, -1 where there is none, and the rows that no entry has.

    Of equal ones the first entry gets the first row, and so on. All is done by sorting, since there may be tens of millions.
    """
    count = len(entries[0])
    labels, digests = (np.concatenate(pair) for pair in zip(entries, rows, strict=True))
    order = np.lexsort((digests, labels))  # stable: of equal ones, entries come before rows, each in their order
    labels, digests = labels[order], digests[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (labels[1:] != labels[:-1]) | (digests[1:] != digests[:-1])
    group = np.cumsum(is_first) - 1
    size = np.bincount(group)
    of_entries = np.bincount(group[order < count], minlength=len(size))
    place = np.arange(len(order)) - np.flatnonzero(is_first)[group]  # within the group
    is_entry = order < count
    has_row = is_entry & (place < (size - of_entries)[group])
    is_left_over = ~is_entry & (place >= 2 * of_entries[group])
    matched = np.full(count, -1, dtype=np.int64)
    entry = np.flatnonzero(has_row)
    matched[order[entry]] = order[entry + of_entries[group[entry]]] - count
    return matched, np.sort(order[is_left_over] - count)


def _renumbered(sets: LabelSets, own: np.ndarray) -> LabelSets:
    """The sets of classes by other numbers of these, int64 [C]: which they were; -1 for one that is gone, which has none."""
    present = np.flatnonzero(own >= 0)
    chosen = sets.select(own[present])
    return LabelSets.of_pairs(np.repeat(present, chosen.sizes), chosen.index, len(own), sets.count)


def _with(table: Table, rows: np.ndarray) -> Iterable[tuple[int, int]]:
    return zip(rows.tolist(), table.content_digests()[rows].tolist(), strict=True)


def _distinct(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with the number of times it came before, since two classes may be called alike."""
    counts: dict[str, int] = defaultdict(int)
    distinct = []
    for name in names:
        distinct.append((name, counts[name]))
        counts[name] += 1
    return distinct


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
