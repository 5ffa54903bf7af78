"""The only room that touches the compiled extensions: loading, dispatch, autograd, `torch.compile`."""

from dmlcore.kernels import operator  # noqa: F401  registers it
from dmlcore.kernels.cpu import plan_options
from dmlcore.kernels.explaining import Explanation, explain
from dmlcore.kernels.extension import functors, info, partner_functors, reason_against
from dmlcore.kernels.rows import FunctorCall, Pass, Passed, Relations, fused_pass, fused_passes, fused_rows

__all__ = [
    "Explanation",
    "FunctorCall",
    "Pass",
    "Passed",
    "Relations",
    "explain",
    "functors",
    "fused_pass",
    "fused_passes",
    "fused_rows",
    "info",
    "partner_functors",
    "plan_options",
    "reason_against",
]
