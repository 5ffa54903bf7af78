"""A trained model: what it takes, and embeddings of anything that it takes. Where models come from is in `loading.py`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.data import LabelledDataset, Splits, Table
from dmlcore.errors import ConfigError, DataError, PluginError
from dmlcore.evaluation import Metric
from dmlcore.evaluation.metrics import RECALL_AT
from dmlcore.models import EmbeddingModel
from dmlcore.ranks.dividing import DividedRows, rows_of_ranks
from dmlcore.serving.inputs import Parts, named_by_user, parts_of, table_for
from dmlcore.serving.samples import Preparation, dataset_batches, default_threads, is_picture_file

Precision = Literal["fp32", "bf16", "fp16"]
BATCH = 256  # samples at a time, as training evaluates
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Embedded:
    """Embeddings of data, in the order of their source.

    Attributes:
        embeddings: float32 [N, D].
        labels: the class of each sample. None: the data have no labels.
        paths: the file of each sample. None: the samples are no files of their own.
        rows: int64 [N], where each stands in its source.
        notes: what the user should know: what was skipped, which samples were trained on.
        splits: the part of each sample in the run's own data. None: other data.
    """

    embeddings: np.ndarray
    labels: list[str] | None
    paths: list[str] | None
    rows: np.ndarray
    notes: list[str] = field(default_factory=list)
    splits: list[str] | None = None

    def __len__(self) -> int:
        return len(self.embeddings)


class Model:
    """A trained model and its preprocessing. `dmlcore.load` gives one.

    Args:
        model: in evaluation mode, on `device`.
        name: of what it was loaded from, for messages.
        preparation: how samples become what it takes.
        device: that it runs on.
        about: what is known of its training.

    Attributes:
        kind: `images`, `features` or `texts`.
        sample_shape: of one sample, (C, H, W), (F,) or (bytes,).
    """

    def __init__(
        self,
        model: EmbeddingModel,
        name: str,
        preparation: Preparation,
        device: torch.device,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.preparation = preparation
        self.kind = preparation.kind
        self.sample_shape = preparation.sample_shape
        self.device = device
        self._about = about or {}

    has_data: ClassVar[bool] = False
    """Whether it knows the data that it was trained on, and which of them were held out."""

    @property
    def identity(self) -> dict[str, Any]:
        """What it was loaded from, for a result."""
        return {"model": self.name}

    @property
    def workers(self) -> int | None:
        """Processes that decode image files for baselines. None: as `dmlcore.data.loading.default_workers` says."""
        return None

    def baseline(self, train: LabelledDataset | None) -> tuple[str, EmbeddingModel | None]:
        """Name and model of what it began as, or None where that is not known.

        Args:
            train: the part that it was trained on, if known.
        """
        return "", None

    @property
    def recall_at(self) -> Sequence[int]:
        """The values of k of `recall@k` that it was trained with."""
        return RECALL_AT

    def measures(self) -> list[Metric]:
        """The measures beside those of retrieval that it was trained with."""
        return []

    @property
    def about(self) -> dict[str, Any]:
        """What is known of its training, for its card: losses, data, metrics and so on."""
        return self._about

    @property
    def embedding_dim(self) -> int:
        """D, the length of an embedding."""
        return self.model.embedding_dim

    def fingerprint(self) -> str:
        """SHA-256 of the weights and their names, by which the model is known again."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def __call__(self, samples: Tensor) -> Tensor:
        """Embeddings [b, D] of samples [b, ...], without gradients."""
        with torch.inference_mode():
            return self.model.serve(samples.to(self.device))

    def encode(
        self,
        samples: Any,
        *,
        batch_size: int = BATCH,
        normalize: bool | None = None,
        dim: int | None = None,
        workers: int | None = None,
        precision: Precision = "fp32",
        as_tensor: bool = False,
        progress: bool = False,
    ) -> Any:
        """Embeddings of samples. On the CPU they are, bit by bit, what training evaluated at the same batch size.

        Args:
            samples: a sample, or several: an array or tensor with one per row, a list, or anything that gives them in turn
                (also arrays of several), which is read as it goes. A picture is a path, one of Pillow, uint8 `[H, W]`,
                `[H, W, C]` or `[C, H, W]` of any size, or floats in 0..1 of the model's size. Features are rows of numbers. A
                text is a `str`. The path of data stands for all its samples: of a folder, a table, or a `pathlib.Path` of a
                file with a text per line.
            batch_size: samples at a time.
            normalize: whether embeddings get unit norm. None: where the model gives unit norm. False: leave those as they are
                that `dim` cuts.
            dim: keep the first so many numbers, of a model whose first numbers are an embedding of that length.
            workers: threads that read and prepare samples. None: one per core; 0: none.
            precision: in which the model runs.
            as_tensor: give a tensor on the model's device, not an array.
            progress: show on stderr how far it is.

        Returns:
            An array (or tensor) float32 `[N, D]`, or `[D]` of a single sample.

        Raises:
            ConfigError: samples of another kind, options out of range, a `dim` that the model was not trained for.
            DataError: a picture or data that cannot be read.
        """
        check_range("batch_size", batch_size, least=1)
        self._check_dim(dim)
        is_data = self._names_data(samples)
        is_one = not is_data and self.preparation.is_one(samples)
        threads = _threads(workers)
        with _shown() if progress else contextlib.nullcontext():
            if is_data:
                whole, _ = self.parts(samples).joined()
                batches = dataset_batches(whole, batch_size, threads)
                total = len(whole)
            else:
                batches = self.preparation.batches([samples] if is_one else samples, batch_size, threads)
                total = 1 if is_one else len(samples) if hasattr(samples, "__len__") else None
            rows = list(_told(self.embed_batches(batches, precision), total, batch_size))
        embeddings = torch.cat(rows) if rows else torch.empty(0, self.embedding_dim, device=self.device)
        embeddings = self._shortened(embeddings, dim, normalize)
        embeddings = embeddings[0] if is_one else embeddings
        return embeddings if as_tensor else embeddings.cpu().numpy()

    def embed_batches(self, batches: Iterable[Tensor], precision: Precision = "fp32") -> Iterator[Tensor]:
        """Embeddings float32 [b, D] of batches of prepared samples, one by one, on the model's device.

        Raises:
            ConfigError: no such precision.
            PluginError: the model gives something else than embeddings.
        """
        if precision != "fp32" and precision not in _DTYPES:
            raise ConfigError(f"precision is '{precision}', but must be fp32, bf16 or fp16")
        for batch in batches:
            with torch.inference_mode(), torch.autocast(self.device.type, _DTYPES.get(precision), precision != "fp32"):
                rows = self.model.serve(batch.to(self.device, non_blocking=True)).float()
            if rows.shape != (len(batch), self.embedding_dim):
                expected = (len(batch), self.embedding_dim)
                raise PluginError(f"the model gave embeddings {tuple(rows.shape)} of {len(batch)} samples; expected {expected}")
            yield rows

    def embed(
        self,
        data: Any,
        options: dict[str, Any] | None = None,
        *,
        batch_size: int = BATCH,
        workers: int | None = None,
        precision: Precision = "fp32",
    ) -> Embedded:
        """Embeddings of data with what is known of the samples. Where ranks divide the work, each embeds a part: the first has
        all that is returned, the others nothing.

        Args:
            data: a name, a path, or the data themselves, as `dmlcore.train` takes them, with or without labels. Also a single
                picture, and a text file with a text per line.
            options: of the data.
            batch_size, workers, precision: as of `encode`.

        Raises:
            DataError: the data cannot be used, or are of another kind or shape.
        """
        parts, threads = self.parts(data, options), _threads(workers)
        whole, split = parts.joined()

        def rows_between(start: int, stop: int) -> Tensor:
            batches = dataset_batches(whole.between(start, stop), batch_size, threads) if start < stop else ()
            pieces = _told(self.embed_batches(batches, precision), stop - start, batch_size)
            return torch.cat([torch.empty(0, self.embedding_dim), *(piece.cpu() for piece in pieces)])

        rows = rows_of_ranks(len(whole), rows_between, batch_size)
        if isinstance(rows, DividedRows):
            first = DividedRows(rows.own.to(self.device), rows.layout).on_first()
            if first is None:
                return Embedded(np.empty((0, self.embedding_dim), dtype=np.float32), None, None, np.empty(0, dtype=np.int64))
            rows = first.cpu()
        return Embedded(
            rows.numpy(),
            [whole.class_names[label] for label in whole.dense_labels] if parts.has_labels else None,
            [str(parts.paths[row]) for row in whole.rows.tolist()] if parts.paths is not None else None,
            parts.places(whole.rows),
            parts.notes,
            None if "all" in parts.parts else split.tolist(),
        )

    def parts(self, data: Any, options: dict[str, Any] | None = None) -> Parts:
        """Data brought to the shape that the model takes, as one part, `all`, or as queries and gallery where they have
        these. Arguments and errors as of `embed`."""
        name, table = table_for(self.preparation, named_by_user(data), options)
        self.check_fits(name, table)
        parts, notes = parts_of(table)
        notes = [*table.skipped, *notes, *self._notes(table)]
        return Parts(name, parts, notes, table.has_labels, table.names(), table.paths)

    def _notes(self, table: Table) -> list[str]:
        """What a user should know of data that a model meets."""
        return []

    def check_fits(self, data: str, samples: Splits | Table) -> None:
        """Refuse data that the model cannot take.

        Args:
            data: its name, for the message.
            samples: what it holds.

        Raises:
            DataError: the data has another kind or shape.
        """
        if samples.kind != self.kind or tuple(samples.sample_shape) != self.sample_shape:
            raise DataError(
                f"'{data}' holds {samples.kind} of shape {tuple(samples.sample_shape)}, but {self.name} was trained on"
                f" {self.kind} of shape {self.sample_shape}"
            )

    @property
    def has_unit_norm(self) -> bool:
        """Whether the model gives embeddings of unit norm."""
        return self.model.normalize or self.model.heads > 1 or self.model.served != "whole"

    def _names_data(self, samples: Any) -> bool:
        """Whether this is the path of data, and no sample."""
        if self.kind == "texts":
            return isinstance(samples, os.PathLike)
        is_path = isinstance(samples, str | os.PathLike)
        return is_path and not (self.kind == "images" and is_picture_file(samples))

    def _check_dim(self, dim: int | None) -> None:
        if dim is None or dim == self.embedding_dim:
            return
        check_range("dim", dim, least=1, most=self.embedding_dim)
        compressor = self.model.compressor
        if self.model.served != "compressed" or compressor is None or not compressor.is_ordered:
            raise ConfigError(
                f"dim is {dim}, but the first numbers of this model's embeddings are no embedding of their own: it gives"
                f" {self.embedding_dim}. Train with --compress {dim}, or compress by principal axes, which can be cut"
            )

    def _shortened(self, embeddings: Tensor, dim: int | None, normalize: bool | None) -> Tensor:
        if dim is not None:
            embeddings = embeddings[:, :dim]
        is_cut = dim is not None and dim < self.embedding_dim
        if normalize or (normalize is None and is_cut and self.has_unit_norm):
            embeddings = functional.normalize(embeddings, dim=1)
        return embeddings


def _threads(workers: int | None) -> int:
    check_range("workers", workers, least=0, most=1024)
    return default_threads() if workers is None else workers


def _told(rows: Iterable[Tensor], total: int | None, batch_size: int) -> Iterator[Tensor]:
    with progress.task("embedding samples", total) as advance:
        done = 0
        for batch in rows:
            yield batch
            done += len(batch)
            advance(done)


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """A bar on stderr, for programs that ask for one."""
    with progress.Bar() as bar, progress.listening(bar):
        yield
