"""Faults of data, found by embeddings, or without a model by the samples as they are: what to look at before training."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dmlcore.config import check_range
from dmlcore.data import LabelledDataset, load_table
from dmlcore.errors import ConfigError, DataError
from dmlcore.evaluation import data_faults, evaluating, reranking
from dmlcore.evaluation.data_faults import Neighbours
from dmlcore.files import writable_text
from dmlcore.serving import index_kinds, picture_pairs
from dmlcore.serving.entries import Entries, unit
from dmlcore.serving.model import Model

KINDS = ("duplicate", "label", "outlier", "overlap")
CANDIDATES = 5  # pictures that each is compared with
EXACT = 30_000  # samples whose neighbours are found by comparing all with all
LIKE_PICTURES, LIKE_VECTORS = 0.97, 0.998  # similarity of near duplicates: correlation of pixels, and cosine of vectors
POOR = 0.5  # share of neighbours of the own class below which labels cannot be judged well
COLUMNS = (
    "kind", "score", "path", "row", "label", "split", "other_path", "other_row", "other_label", "other_split", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """Data that are looked at.

    Attributes:
        entries: unit vectors, and what identifies each sample.
        dataset: the samples; None: only vectors are there.
        pictures: unit vectors of small grey pictures, as `picture_pairs` has them; None: the samples are no pictures.
    """

    entries: Entries
    dataset: LabelledDataset | None = None
    pictures: np.ndarray | None = None


@dataclass(frozen=True)
class Fault:
    """Something to look at.

    Attributes:
        kind: `duplicate` (two samples that are nearly the same), `label` (likely a wrong one), `outlier`, or `overlap` (two
            classes).
        score: the higher the surer: the similarity of duplicates, how much surer neighbours are of another class, robust
            standard deviations of an outlier, the share of the one class among neighbours of the other.
        position: of the sample among the entries; of an overlap, of a sample of the first class.
        other: of a second sample: the duplicate, or the nearest of the class that is likely or overlaps. None: there is none.
        note: in words.
    """

    kind: str
    score: float
    position: int
    other: int | None
    note: str


@dataclass(frozen=True)
class Faults:
    """What was found in data.

    Attributes:
        faults: by kind, and the surest first.
        samples: N.
        notes: what the user should know.
        kinds: what was looked for.
    """

    faults: list[Fault]
    samples: int
    notes: list[str] = field(default_factory=list)
    kinds: tuple[str, ...] = KINDS

    def counts(self) -> dict[str, int]:
        """Faults by kind, of those kinds that were looked for."""
        return {kind: sum(fault.kind == kind for fault in self.faults) for kind in KINDS if kind in self.kinds}


def subject_of(data: Any, model: Model | None = None, options: dict[str, Any] | None = None) -> Subject:
    """Data as they are looked at.

    Args:
        data: a name, a path, or the data themselves, as `dmlcore.train` takes them.
        model: whose embeddings tell what is similar. None: the samples as they are (pixels of small pictures, features,
            trigrams of texts).
        options: of the data.

    Raises:
        DataError: the data cannot be used.
    """
    if model is not None:
        parts = model.parts(data, options)
        whole, split = parts.joined()
        batches = evaluating.samples(whole)
        vectors = torch.cat([rows.cpu() for rows in model.embed_batches(batches)])
        rows, paths, notes, has_labels = parts.places(whole.rows), parts.paths, parts.notes, parts.has_labels
        splits = None if "all" in parts.parts else split.tolist()
    else:
        _, table = load_table(data, options=options, needs_labels=False)
        rows = np.arange(len(table.labels))
        whole = LabelledDataset(table.samples, rows, table.labels, table.class_names, table.sample_shape)
        vectors = evaluating.raw_features(whole)
        vectors = vectors - vectors.mean(0)  # what all have in common says nothing of their differences
        paths, notes, has_labels = table.paths, table.skipped, table.has_labels
        splits = None if table.split is None else table.split.tolist()
    labels = [str(whole.class_names[label]) for label in whole.dense_labels] if has_labels else None
    names = None if paths is None else [str(paths[row]) for row in whole.rows]
    columns = {} if splits is None else {"split": splits}
    entries = Entries(unit(vectors.float().numpy()), names, rows, labels, columns, list(notes))
    return Subject(entries, whole, picture_pairs.small_pictures(whole) if len(whole.sample_shape) == 3 else None)


def find_faults(
    subject: Subject, *, k: int = 10, alike: float | None = None, far: float = 4.0, kinds: tuple[str, ...] = KINDS
) -> Faults:
    """What to look at in data.

    Args:
        subject: the data.
        k: neighbours that are asked about a label.
        alike: similarity from which two samples are near duplicates. None: 0.97 of pictures, 0.998 of other vectors.
        far: robust standard deviations from which a sample is an outlier.
        kinds: what to look for.

    Raises:
        ConfigError: an option is out of range, or there is no such kind.
        DataError: fewer than three samples.
    """
    check_range("k", k, least=1)
    check_range("alike", alike, above=0, most=1)
    check_range("far", far, above=0)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kind is '{kind}', but must be one of {', '.join(KINDS)}")
    entries, count = subject.entries, len(subject.entries)
    if count < 3:
        raise DataError(f"there are {count} samples, too few to compare")
    near = neighbours(entries.vectors, min(k, count - 1))
    faults: list[Fault] = []
    notes = list(entries.notes)
    if "duplicate" in kinds:
        if subject.pictures is None:
            pairs, scores = data_faults.duplicates(near, alike or LIKE_VECTORS)
        else:
            pairs, scores = _like_pictures(subject, alike or LIKE_PICTURES)
        faults += _duplicates(entries, pairs, scores)
    classes, labels = np.unique(entries.label, return_inverse=True) if entries.label is not None else ((), np.empty(0, int))
    if len(classes) > 1:
        shares = data_faults.class_shares(near, labels, len(classes))
        agreement = data_faults.agreement(shares, labels)
        if agreement < POOR and {"label", "overlap"} & set(kinds):
            notes.append(
                f"of the neighbours only {agreement:.0%} share a sample's label: by these vectors neither wrong labels nor"
                " overlaps are found well. Name a better --model"
            )
        if "label" in kinds:
            faults += _doubts(shares, labels, classes, near)
        faults += _outliers(near, far) if "outlier" in kinds else []
        if "overlap" in kinds:
            faults += _overlaps(shares, labels, classes, entries.vectors)
    else:
        if {"label", "overlap"} & set(kinds):
            notes.append("without labels of two classes only duplicates and outliers are looked for")
        kinds = tuple(kind for kind in kinds if kind not in ("label", "overlap"))
        faults += _outliers(near, far) if "outlier" in kinds else []
    return Faults(faults, count, notes, kinds)


def neighbours(vectors: np.ndarray, k: int) -> Neighbours:
    """The k nearest others of unit vectors [N, D]; of many vectors they are found by an approximate structure."""
    if len(vectors) <= EXACT:
        scores, positions = reranking.nearest(vectors, vectors, k + 1)
    else:
        kind, _ = index_kinds.choose(len(vectors), vectors.shape[1], 2.0)
        if kind is index_kinds.Flat:
            scores, positions = index_kinds.exact(vectors, vectors, k + 1)
        else:
            structure = kind(vectors.shape[1])
            structure.build(vectors, 0)
            positions = structure.search(vectors, k + 1, structure.efforts[1], None)
            positions = np.maximum(positions, 0)
            scores = np.empty(positions.shape, dtype=np.float32)
            for start in range(0, len(vectors), reranking.ROWS):
                part = slice(start, start + reranking.ROWS)
                scores[part] = np.einsum("nd,nkd->nk", vectors[part], vectors[positions[part]])
    own = positions == np.arange(len(vectors))[:, None]
    own[~own.any(1), -1] = True  # of several equal samples it may not find itself
    shape = (len(vectors), positions.shape[1] - 1)
    return Neighbours(positions[~own].reshape(shape), scores[~own].reshape(shape))


def _like_pictures(subject: Subject, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of pictures that are nearly the same, int64 [P, 2], and their likeness, the most alike first."""
    pictures, dataset = subject.pictures, subject.dataset
    assert pictures is not None and dataset is not None
    k = min(CANDIDATES, len(pictures) - 1)
    pairs, _ = data_faults.duplicates(neighbours(pictures, k), picture_pairs.CANDIDATE)
    flips = np.zeros(len(pairs), dtype=bool)
    if len(pictures) <= EXACT:  # of more, mirrored ones are not looked for: it would take as long again
        scores, positions = reranking.nearest(picture_pairs.mirrored(pictures), pictures, k)
        positions = np.where(positions == np.arange(len(pictures))[:, None], -1, positions)
        scores = np.where(positions < 0, -1, scores)  # a picture that is symmetric is no duplicate
        other, _ = data_faults.duplicates(Neighbours(positions, scores), picture_pairs.CANDIDATE)
        pairs, flips = np.concatenate([pairs, other]), np.concatenate([flips, np.ones(len(other), dtype=bool)])
    likeness = picture_pairs.likeness(dataset, pairs, flips)
    order = np.argsort(-likeness, kind="stable")[: int((likeness >= least).sum())]
    _, first = np.unique(pairs[order], axis=0, return_index=True)  # a pair may be alike both ways
    order = order[np.sort(first)]
    return pairs[order], likeness[order]


def _duplicates(entries: Entries, pairs: np.ndarray, scores: np.ndarray) -> list[Fault]:
    faults = []
    for (first, second), score in zip(pairs.tolist(), scores.tolist(), strict=True):
        words = []
        if entries.label is not None and entries.label[first] != entries.label[second]:
            words.append("different labels")
        splits = entries.columns.get("split")
        if splits is not None and splits[first] != splits[second]:
            words.append(f"in {splits[first]} and {splits[second]}")
        faults.append(Fault("duplicate", score, first, second, ", ".join(words)))
    return sorted(faults, key=lambda fault: not fault.note)  # those that do harm first


def _doubts(shares: Any, labels: np.ndarray, classes: np.ndarray, near: Neighbours) -> list[Fault]:
    doubts = data_faults.label_doubts(shares, labels)
    faults = []
    for position, likely, doubt in zip(doubts.positions.tolist(), doubts.likely.tolist(), doubts.doubts.tolist(), strict=True):
        ranks = np.flatnonzero(labels[near.positions[position]] == likely)
        faults.append(
            Fault("label", doubt, position, int(near.positions[position, ranks[0]]), f"neighbours say {classes[likely]}")
        )
    return faults


def _outliers(near: Neighbours, far: float) -> list[Fault]:
    positions, deviations = data_faults.outliers(near, far)
    return [
        Fault("outlier", deviation, position, int(near.positions[position, 0]), "far from all others")
        for position, deviation in zip(positions.tolist(), deviations.tolist(), strict=True)
    ]


def _overlaps(shares: Any, labels: np.ndarray, classes: np.ndarray, vectors: np.ndarray) -> list[Fault]:
    faults = []
    for first, second, share in data_faults.overlaps(shares, labels):
        mine, theirs = np.flatnonzero(labels == first), np.flatnonzero(labels == second)
        s = vectors[mine[:500]] @ vectors[theirs[:500]].T
        row, column = np.unravel_index(int(s.argmax()), s.shape)
        note = f"{classes[first]} and {classes[second]}"
        faults.append(Fault("overlap", share, int(mine[row]), int(theirs[column]), note))
    return faults


def faults_csv(subject: Subject, faults: Faults) -> bytes:
    """The faults as a .csv with a row each."""
    columns = subject.entries.all_columns()

    def known(position: int | None) -> list[str]:
        if position is None:
            return [""] * 4
        return [
            writable_text(str(columns[name][position])) if name in columns else "" for name in ("path", "row", "label", "split")
        ]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for fault in faults.faults:
        writer.writerow(
            [fault.kind, f"{fault.score:.4f}", *known(fault.position), *known(fault.other), writable_text(fault.note)]
        )
    return text.getvalue().encode()
