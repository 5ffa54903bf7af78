"""The only room that touches the compiled extensions: loading, dispatch, autograd, `torch.compile`."""

from dmlcore.kernels.extension import functors, info, reason_against
from dmlcore.kernels.rows import FunctorCall, fused_rows, plan_options

__all__ = ["FunctorCall", "functors", "fused_rows", "info", "plan_options", "reason_against"]
