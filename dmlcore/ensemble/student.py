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


def similarity_matching(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """`t^2 mean_b KL(softmax(T_b / t) || softmax(S_b / t))` with `S_b` and `T_b` the cosines of sample `b` with the others of
    the batch in the student and in the teacher.

    Retrieval asks which samples are nearest. The softmax weighs a pair by its closeness in the teacher, so neighbourhoods count
    and far pairs hardly do, and an offset common to a sample's similarities, which changes no ranking, costs nothing. Matching
    distances or whole matrices evenly would spend a narrow student on the many pairs that are far apart anyway. Only
    similarities are compared, so the widths may differ and the teacher may be turned at will.

    Args:
        student: `[B, d]` floating point, any norm.
        teacher: `[B, W]` floating point, any norm; detached.
        temperature: how far down the neighbours count, > 0: large ones match all differences of a row alike.

    Returns:
        Scalar >= 0, float32 at least; 0 where the similarities agree, and below 3 samples, where there is nothing to rank.

    Raises:
        ConfigError: not two matrices of as many rows, or `temperature <= 0`.

    Source: Roth, Milbich, Ommer, Cohen, Ghassemi, "Simultaneous Similarity-based Self-Distillation for Deep Metric Learning"
    (S2SD), ICML 2021, as in the authors' code. Deviations: without the diagonal, which at low temperature would outweigh the
    neighbours; a default temperature of 0.1 (there 1), so that neighbours do count more; the teacher is whatever is given.
    """
    check_range("temperature", temperature, above=0)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        got = f"{list(student.shape)} and {list(teacher.shape)}"
        raise ConfigError(f"student and teacher must be matrices of as many rows, [B, d] and [B, W], got {got}")
    if len(student) < 3:
        return student.sum() * 0
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(student.dtype, torch.float32)
        of_teacher = functional.log_softmax(_others(teacher.detach().to(dtype)) / temperature, dim=1)
        of_student = functional.log_softmax(_others(student.to(dtype)) / temperature, dim=1)
        return temperature**2 * functional.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)
