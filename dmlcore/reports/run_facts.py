"""What a page knows of a run: its records and results, and how its model sees one part of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmlcore.data import LabelledDataset, LabelSets
from dmlcore.evaluation import inspection


@dataclass(frozen=True)
class PartView:
    """A part of the data as a model sees it.

    Attributes:
        name: of the part.
        dataset: N samples.
        sample_names: a name per sample of the part.
        embeddings: [N, D] float32 on the CPU.
        inspected: what its queries find.
        scores: by class; samples with the same labels are a class.
        label_scores: by label, where samples have several and count for each, else None.
        confusions: the most frequent first; None where samples have several labels, so that no class is taken for one other.
    """

    name: str
    dataset: LabelledDataset
    sample_names: Sequence[str]
    embeddings: Tensor
    inspected: inspection.Inspection
    scores: inspection.ClassScores
    label_scores: inspection.ClassScores | None
    confusions: list[inspection.Confusion] | None


@dataclass(frozen=True)
class RunFacts:
    """A run as a page tells of it.

    Attributes:
        folder: of the run.
        settings: of `config.toml`, plain values by key; options of components are tables.
        records: lines of `metrics.jsonl`.
        result: of `result.json`; None: the run is not finished.
        data: source, parts and notes, as `Splits.describe` gives them.
        step: of the checkpoint that was looked at.
        environment: versions and device, by name.
        view: of the test part of a finished run, else of the validation part; None: it cannot be ranked.
        why_not_ranked: why not, a sentence.
        with_umap: draw UMAP too, where it is installed.
    """

    folder: Path
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    result: dict[str, Any] | None
    data: dict[str, Any]
    step: int
    environment: dict[str, Any]
    view: PartView | None
    why_not_ranked: str = ""
    with_umap: bool = False

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name


def look(embeddings: Tensor, dataset: LabelledDataset, name: str, sample_names: Sequence[str]) -> PartView:
    """Look at what the queries of a part of the data find.

    Args:
        embeddings: [N, D] floating point, of the part.
        dataset: N samples that can be ranked, see `evaluating.why_not_ranked`.
        name: of the part.
        sample_names: a name per sample of the whole table.
    """
    labels = dataset.labels if dataset.sets is None else dataset.judged_sets()
    inspected = inspection.inspect(embeddings, labels, queries=dataset.queries, references=dataset.references)
    names = [str(sample_names[row]) for row in np.asarray(dataset.rows)]
    return PartView(
        name,
        dataset,
        names,
        embeddings.cpu(),
        inspected,
        inspection.class_scores(inspected, dataset.dense_labels),
        inspection.class_scores(inspected, labels) if isinstance(labels, LabelSets) else None,
        inspection.confusions(inspected, dataset.dense_labels) if dataset.sets is None else None,
    )
