"""What a server serves: a model, the index that it embeds for, and a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.serving.http.batching import Batcher
from dmlcore.serving.http.counting import Counts
from dmlcore.serving.http.limits import Limits, Refused
from dmlcore.serving.index import Index
from dmlcore.serving.model import Model, default_threads


class Service:
    """A model and perhaps an index, which is changed under way when its folder is.

    Args:
        model: embeds samples.
        index: is searched. None: there is nothing to find.
        threshold: cosine from which two samples are of one class. None: not known.
        limits: on requests.

    Raises:
        ConfigError: the index holds vectors of another length or another model, or the threshold is no cosine.
    """

    def __init__(self, model: Model, index: Index | None, threshold: float | None, limits: Limits) -> None:
        check_range("threshold", threshold, least=-1, most=1)
        self.model, self.index, self.threshold, self.limits = model, index, threshold, limits
        self.fingerprint = model.fingerprint() if index is not None else ""
        if index is not None:
            self._check(index)
        self.counts = Counts()
        self.swaps = 0
        self.pool = ThreadPoolExecutor(default_threads(), thread_name_prefix="samples")
        self.batcher = Batcher(self._embed, limits.batch, limits.waiting)

    def _embed(self, samples: Tensor) -> np.ndarray:
        (rows,) = self.model.embed_batches([samples])
        return rows.cpu().numpy()

    def _check(self, index: Index) -> None:
        if index.dim != self.model.embedding_dim:
            raise ConfigError(
                f"the index in {index.folder.path} holds vectors of {index.dim}, but {self.model.name} gives embeddings of"
                f" {self.model.embedding_dim}"
            )
        index.check_model(self.fingerprint)

    def describe(self) -> dict[str, Any]:
        """The model and the index as plain values for JSON."""
        index = self.index
        return {
            "kind": self.model.kind,
            "sample_shape": list(self.model.sample_shape),
            "embedding_dim": self.model.embedding_dim,
            "entries": len(index) if index is not None else None,
            "columns": index.columns if index is not None else [],
            "generation": index.about["generation"] if index is not None else None,
            "threshold": self.threshold,
        }

    def search(self, queries: np.ndarray, k: int, where: Sequence[str], threshold: float | None) -> list[dict[str, Any]]:
        """What each query finds: its neighbours, the nearest first, and `answer`, the label of the nearest where that is near
        enough.

        Raises:
            ConfigError: conditions that cannot be read.
        """
        index = self.searched()
        hits = index.search(queries, min(k, max(len(index), 1)), where=where)
        results = []
        for positions, scores in zip(hits.positions, hits.scores, strict=True):
            found = positions >= 0
            neighbours = [
                {"position": int(position), "score": float(np.clip(score, -1, 1)), **entry}
                for position, score, entry in zip(positions[found], scores[found], index.entries(positions[found]), strict=True)
            ]
            is_near = bool(neighbours) and (threshold is None or neighbours[0]["score"] >= threshold)
            results.append({"neighbours": neighbours, "answer": neighbours[0].get("label") if is_near else None})
        return results

    def picture_of(self, position: int, generation: int) -> Path:
        """The file of an entry.

        Raises:
            Refused: there is no such entry, or it is no file, or positions are those of another state of the index.
        """
        index = self.searched()
        if generation != index.about["generation"]:
            raise Refused(410, "the index has changed: search again")
        path = index.entries([position])[0].get("path") if 0 <= position < index.about["count"] else None
        if not path or not Path(path).is_file():
            raise Refused(404, "this entry has no picture here")
        return Path(path)

    def searched(self) -> Index:
        if self.index is None:
            raise Refused(404, "there is no index: start `dmlcore serve` with one to search")
        return self.index

    def renewed(self) -> bool:
        """Open the index again if its folder has a newer state; whether it had. Requests go on meanwhile.

        Raises:
            DmlcoreError: the new state cannot be used. The old one stays in use.
        """
        if self.index is None:
            return False
        folder = self.index.folder
        if folder.read_about()["generation"] == self.index.about["generation"]:
            return False
        index = Index(folder.path)
        self._check(index)
        self.index = index
        self.swaps += 1
        return True

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Numbers for the page of metrics."""
        batcher = self.batcher
        return {
            "samples_total": ("Samples embedded.", batcher.samples),
            "batches_total": ("Batches embedded.", batcher.batches),
            "waiting_samples": ("Samples that wait for the model.", batcher.waiting),
            "index_entries": ("Entries that can be found.", len(self.index) if self.index is not None else 0),
            "index_swaps_total": ("Changes of the index under way.", self.swaps),
        }

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        self.batcher.close()
        self.pool.shutdown()
