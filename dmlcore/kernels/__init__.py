"""The only room that touches the compiled extensions: loading, dispatch, autograd, `torch.compile`, functors compiled at run
time."""

from dmlcore.kernels import operator  # noqa: F401  registers it
from dmlcore.kernels.cpu import plan_options
from dmlcore.kernels.explaining import Explanation, explain
from dmlcore.kernels.extension import functors, partner_functors, reason_against
from dmlcore.kernels.facts import info
from dmlcore.kernels.jit.dispatch import why_missing
from dmlcore.kernels.jit.upkeep import build_functors, clear_functors, kept_functors
from dmlcore.kernels.rows import FunctorCall, Pass, Passed, Relations, fused_pass, fused_passes, fused_rows

__all__ = [
    "Explanation",
    "FunctorCall",
    "Pass",
    "Passed",
    "Relations",
    "build_functors",
    "clear_functors",
    "explain",
    "functors",
    "fused_pass",
    "fused_passes",
    "fused_rows",
    "info",
    "kept_functors",
    "partner_functors",
    "plan_options",
    "reason_against",
    "why_missing",
]
