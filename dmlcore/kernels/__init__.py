"""The only room that touches the compiled extensions: loading, dispatch, autograd, `torch.compile`, functors compiled at run
time."""

from dmlcore.kernels.explaining import Explanation, explain
from dmlcore.kernels.extension import functors, info, partner_functors, reason_against
from dmlcore.kernels.keeping import build_functors, clear_functors, kept_functors
from dmlcore.kernels.rows import FunctorCall, Relations, fused_pass, fused_rows, plan_options
from dmlcore.kernels.runtime import why_missing

__all__ = [
    "Explanation",
    "FunctorCall",
    "Relations",
    "build_functors",
    "clear_functors",
    "explain",
    "functors",
    "fused_pass",
    "fused_rows",
    "info",
    "kept_functors",
    "partner_functors",
    "plan_options",
    "reason_against",
    "why_missing",
]
