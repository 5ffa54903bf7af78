"""`python -m benchmarks gradients`: what holds for every loss of the table of cases. Nothing is timed.

The page is docs/reports/gradients.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from cases import BATCHES, LOSSES, Case, embeddings_of, hold_draws, value_and_gradients  # noqa: E402

PAGE = ROOT / "docs" / "reports" / "gradients.md"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ORDINARY = ("odd", "sorted", "large", "unbalanced", "two classes")  # no coincident points: their decisions are not ties
CONSTANT_WEIGHTS = {
    "circle": "its weights are constants in the gradient, as in the paper",
    "sample_specific": "its keys and its weights are constants in the gradient, as in the authors' code",
}
EXACT = 1e-8

HEADER = """# Values and gradients of every loss

`python -m benchmarks gradients` makes this page from the table of cases (`tests/cases.py`). The same machine gives the same
page. A row is a loss with its options.

- **gradcheck** compares the gradient of what users call with finite differences, in float64, for embeddings and every learnable
  parameter. What users call is the fused form where there is one. Some definitions take weights as constants, so their gradient
  is not the derivative of their value. It is compared with the plain PyTorch definition instead, and the cell says `= plain`.
  Some losses draw random numbers by the bits of the embeddings. The draws are held for this check and for the errors.
- **order** permutes the batch. The gradient is permuted too and the value stays (relative to {exact:.0e} in float64).
  `of classes` says that the order of a class's own samples matters, so they keep it.
- **scale** multiplies each embedding by a positive number of its own. The value stays, and the gradient of each embedding is
  orthogonal to it. `by norm` says that the definition depends on the norms, so nothing is claimed.
- **errors** are the worst relative errors of value and gradient over the batches {batches}. They are taken against the plain
  definition in float64 of the same rounded inputs. A gradient's error is divided by its largest component. Gradients of
  half-precision inputs are returned in that precision. Its rounding is 3.9e-3 (bfloat16) and 4.9e-4 (float16). A gradient below
  its smallest normal number (6e-5 for float16) is not counted, since training in float16 scales losses.
- **fused** says whether one pass over the similarities computes the loss, or why not.

CPU kernels: instruction set {level}, products by {blas}. One thread.
"""


def _loss_inputs(case: Case) -> tuple[Any, Tensor, Tensor]:
    labels = torch.tensor([0, 0, 1, 2, 1, 2, 2, 3])
    return case.create(classes=4, width=4), embeddings_of(labels, 4, seed=5), labels


def _near(actual: Tensor, expected: Tensor, tolerance: float = EXACT) -> bool:
    return bool((actual - expected).abs().max() <= tolerance * (1e-3 + expected.abs().max())) if actual.numel() else True


def gradcheck(case: Case) -> str:
    """`yes`, `= plain` for gradients that are no derivative by definition, or what is wrong."""
    loss, x, labels = _loss_inputs(case)
    if case.name in CONSTANT_WEIGHTS:
        own, plain = (value_and_gradients(loss, x, labels, compute)[1] for compute in (loss, loss.reference))
        return "= plain" if all(_near(a, b) for a, b in zip(own, plain, strict=True)) else "FAILS: not the plain gradient"
    inputs = (x.requires_grad_(), *loss.parameters())
    hold_draws(loss)
    try:
        torch.autograd.gradcheck(lambda *tensors: loss(tensors[0], labels), inputs, eps=1e-7, atol=1e-5, rtol=1e-4)
    except GradcheckError as error:
        return f"FAILS: {' '.join(str(error).split())[:120]}"
    return "yes"


def order_invariance(case: Case) -> str:
    """`yes`, `of classes` where a class's own order matters, or what is wrong."""
    loss, (x, y) = case.create(), BATCHES["odd"]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(4))
    if case.takes_first:
        order = torch.argsort(y, stable=True)
    value, (gradient, *of_parameters) = value_and_gradients(loss, x, y, loss)
    shuffled, (shuffled_gradient, *shuffled_of_parameters) = value_and_gradients(loss, x[order], y[order], loss)
    if not _near(shuffled, value):
        return f"FAILS: {value.item():.6g} becomes {shuffled.item():.6g}"
    pairs = [(shuffled_gradient, gradient[order]), *zip(shuffled_of_parameters, of_parameters, strict=True)]
    stays = "of classes" if case.takes_first else "yes"
    return stays if all(_near(a, b) for a, b in pairs) else "FAILS: the gradient does not follow"


def scale_invariance(case: Case) -> str:
    """`yes`, `by norm` where the definition does not claim it, or what is wrong."""
    loss, (x, y) = case.create(), BATCHES["odd"]
    if not case.scale_free:
        return "by norm"
    factors = torch.logspace(-2, 2, len(x), dtype=x.dtype)[:, None]
    value, (gradient, *_) = value_and_gradients(loss, x, y, loss)
    scaled, (scaled_gradient, *_) = value_and_gradients(loss, factors * x, y, loss)
    if not _near(scaled, value):
        return f"FAILS: {value.item():.6g} becomes {scaled.item():.6g}"
    if not _near(factors * scaled_gradient, gradient):
        return "FAILS: the gradient is not divided by the scale"
    radial = (gradient * x / x.norm(dim=1, keepdim=True)).sum(1).abs().max()
    return "yes" if radial <= EXACT * (1e-3 + gradient.abs().max()) else f"FAILS: radial part {radial:.1e}"


def errors(case: Case, dtype: torch.dtype) -> tuple[float, float]:
    """Worst relative errors of value and gradients against the plain definition in float64."""
    of_value = of_gradient = 0.0
    for batch in ORDINARY:
        x, y = BATCHES[batch]
        x = x.to(dtype)  # what is computed exactly is the rounded input
        low, exact = case.create(torch.float32), case.create()
        exact.load_state_dict(low.state_dict())
        hold_draws(exact, low)
        value, gradients = value_and_gradients(low, x, y, low)
        truth, truths = value_and_gradients(exact, x.double(), y, exact.reference)
        if truth != 0:
            of_value = max(of_value, float((value.double() - truth).abs() / truth.abs()))
        for actual, expected in zip(gradients, truths, strict=True):
            if expected.numel() and (most := expected.abs().max()) >= torch.finfo(actual.dtype).tiny:
                of_gradient = max(of_gradient, float((actual.double() - expected).abs().max() / most))
    return of_value, of_gradient


def row(case: Case) -> list[str]:
    """The entries of one line of the page."""
    loss = case.create()
    options = ", ".join(f"{key} = {value}" for key, value in case.options.items())
    entries = [f"`{case.name}`" + (f" {options}" if options else "")]
    entries += [gradcheck(case), order_invariance(case), scale_invariance(case)]
    entries += [" / ".join(f"{error:.0e}" for error in errors(case, dtype)) for dtype in DTYPES.values()]
    return [*entries, "yes" if loss.is_fused else f"no: {loss.why_not_fused}"]


def page(cases: Sequence[Case]) -> str:
    """The whole page: an explanation and a line per case."""
    from dmlcore.kernels import info

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lines = [row(case) for case in cases]
    finally:
        torch.set_num_threads(threads)
    cpu = info()["cpu"]
    header = ["loss", "gradcheck", "order", "scale", *(f"{name}: value / gradient" for name in DTYPES), "fused"]
    table = ["| " + " | ".join(entries) + " |" for entries in [header, ["---"] * len(header), *lines]]
    about = HEADER.format(exact=EXACT, batches=", ".join(ORDINARY), level=cpu["level"] or "none", blas=cpu["blas"] or "PyTorch")
    reasons = [f"- `{name}`: {why}." for name, why in CONSTANT_WEIGHTS.items() if any(case.name == name for case in cases)]
    notes = ["", "Gradients that are no derivative of the value:", "", *reasons] if reasons else []
    return "\n".join([about, *table, *notes, ""])


def write(path: Path | None = None, only: str | None = None) -> str:
    """Write the page and return it.

    Args:
        path: the file; None: docs/reports/gradients.md.
        only: part of the cases' names, for a quick look.
    """
    text = page([case for case in LOSSES if only is None or only in case.id])
    (path or PAGE).write_text(text)
    return text
