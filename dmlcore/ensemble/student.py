"""What a student embedding learns from a teacher: its similarities, not its coordinates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.losses.distances import cosine_similarities


def _others(vectors: Tensor) -> Tensor:
    """`[B, B - 1]` cosines of every sample with the others."""
    count = len(vectors)
    similarities = cosine_similarities(vectors, vectors)
    return similarities.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)  # without the diagonal


def _with_self(vectors: Tensor) -> Tensor:
    """`[B, B]` cosines of every sample with all of them."""
    return cosine_similarities(vectors, vectors)


def similarity_matching(student: Tensor, teacher: Tensor, *, temperature: float = 0.1, with_self: bool = False) -> Tensor:
    """`t^2 mean_b KL(softmax(T_b / t) || softmax(S_b / t))`. `S_b` and `T_b` are the cosines of sample `b` with the other
    samples of the batch, in the student and in the teacher.

    Retrieval needs to know which samples are nearest. The softmax gives pairs that are close in the teacher a large weight, and
    pairs that are far apart a small one. A constant added to all similarities of a sample changes no ranking, and it costs
    nothing here. If all pairs counted alike, a narrow student would use most of its numbers for pairs that are far apart. Only
    similarities are compared, so the two widths may differ, and a rotation of the teacher changes nothing.

    Args:
        student: `[B, d]` floating point, any norm.
        teacher: `[B, W]` floating point, any norm; detached.
        temperature: > 0. A small one counts the nearest neighbours only, a large one counts all pairs alike.
        with_self: the similarity of a sample with itself counts too, as published.

    Returns:
        Scalar >= 0, float32 or float64. It is 0 if the similarities agree, and for fewer than 3 samples, which have no ranking.

    Raises:
        ConfigError: the arguments are not two matrices with the same number of rows, or `temperature <= 0`.

    Source: Roth, Milbich, Ommer, Cohen, Ghassemi, "Simultaneous Similarity-based Self-Distillation for Deep Metric Learning"
    (S2SD), ICML 2021, as in the authors' code. Deviations: unless `with_self`, the similarity of a sample with itself is left
    out, because at a low temperature it would outweigh the neighbours. The default temperature is 0.1 instead of 1, so that
    neighbours count more.
    The teacher may be any embedding.
    """
    check_range("temperature", temperature, above=0)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        got = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ConfigError(f"student and teacher must be matrices of as many rows, [B, d] and [B, W], got {got}")
    if len(student) < 3:
        return student.sum() * 0
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(student.dtype, torch.float32)
        similarities = _with_self if with_self else _others
        of_teacher = functional.log_softmax(similarities(teacher.detach().to(dtype)) / temperature, dim=1)
        of_student = functional.log_softmax(similarities(student.to(dtype)) / temperature, dim=1)
        return temperature**2 * functional.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)
