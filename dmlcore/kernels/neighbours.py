"""Ranks of positives by the compiled extensions, on the CPU and on CUDA. The plain definition: `dmlcore.evaluation.plain`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmlcore.kernels import cuda_neighbours, extension

NUMBER_TYPES = (torch.float32, torch.float64)


def why_not(embeddings: Tensor) -> str:
    """Why these embeddings cannot be ranked by the extension; empty if they can."""
    return extension.why_not(embeddings.device.type)


def rank_positives(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    ks: Sequence[int],
    metric: str,
    *,
    memory: int = 0,
    few: int = 0,
) -> Tensor:
    """What every query finds. See `dmlcore.evaluation.plain.rank_positives`, whose values and order of ties it has.

    Args:
        queries: [Q, D] float32 or float64, finite.
        query_labels: [Q] int64.
        references: [N, D] of the same type; None: every query against all other queries.
        reference_labels: [N] int64, or None; all on one device.
        ks: numbers of nearest references, each at least 1.
        metric: "cosine", "dot" or "euclidean".
        memory: bytes for the positives' similarities and counts; more positives are taken in turns. 0: 64 MiB on the CPU,
            512 MiB on a GPU, where it includes what sorting takes.
        few: up to so many positives per query each is compared, more are searched. 0: as measured best on the CPU, 16 on a GPU.

    Returns:
        [5 + len(ks), Q] float64, on the queries' device.
    """
    if queries.device.type == "cuda":
        return cuda_neighbours.rank_positives(
            queries, query_labels, references, reference_labels, ks, metric, memory=memory, few=few
        )
    values = torch.empty(5 + len(ks), len(queries), dtype=torch.float64)
    tensors = []  # what the pointers below point into

    def pointers(vectors: Tensor, labels: Tensor) -> tuple[int, int, int]:
        tensors.extend((vectors.detach().contiguous(), labels.contiguous()))
        return tensors[-2].data_ptr(), tensors[-1].data_ptr(), len(vectors)

    query_side = pointers(queries, query_labels)
    reference_side = None if references is None or reference_labels is None else pointers(references, reference_labels)
    sides = query_side, reference_side
    module = extension.cpu()
    assert module is not None
    is_double = queries.dtype == torch.float64
    module.rank_positives(
        is_double, *sides, queries.shape[1], metric, list(ks), values.data_ptr(), torch.get_num_threads(), memory, few
    )
    return values
