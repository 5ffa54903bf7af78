"""The only room that touches the compiled extensions: loading, dispatch, autograd, `torch.compile`."""

from dmlcore.kernels.explaining import Explanation, explain
from dmlcore.kernels.extension import functors, info, partner_functors, reason_against
from dmlcore.kernels.rows import FunctorCall, Relations, fused_pass, fused_rows, plan_options

__all__ = [
    "Explanation",
    "FunctorCall",
    "Relations",
    "explain",
    "functors",
    "fused_pass",
    "fused_rows",
    "info",
    "partner_functors",
    "plan_options",
    "reason_against",
]
