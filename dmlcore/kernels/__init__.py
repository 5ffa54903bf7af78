"""The only room that touches the compiled extensions: loading, dispatch, autograd, `torch.compile`, functors compiled at run
time."""

from dmlcore.kernels import extension
from dmlcore.kernels.cpu import gram
from dmlcore.kernels.divided import REDUCTIONS, DividedBatch, divided_batch, divided_passes
from dmlcore.kernels.extension import constant_in_graphs, functors, merging_functors, partner_functors, why_not
from dmlcore.kernels.facts import info
from dmlcore.kernels.fused import Passed, fused_again, fused_pass, fused_passes, fused_rows
from dmlcore.kernels.jit.dispatch import why_not_loaded
from dmlcore.kernels.jit.upkeep import build_functors, clear_functors, kept_functors
from dmlcore.kernels.operator import fused_rows_op  # noqa: F401  registers the operator
from dmlcore.kernels.passes import FunctorCall, Pass, Relations
from dmlcore.kernels.planning import plan_options, recorded_passes
from dmlcore.kernels.prepared import PreparedPass, PreparedPasses, plan_is_watched

__all__ = [
    "REDUCTIONS",
    "DividedBatch",
    "FunctorCall",
    "Pass",
    "Passed",
    "PreparedPass",
    "PreparedPasses",
    "Relations",
    "build_functors",
    "clear_functors",
    "constant_in_graphs",
    "divided_batch",
    "divided_passes",
    "extension",
    "functors",
    "fused_again",
    "fused_pass",
    "fused_passes",
    "fused_rows",
    "gram",
    "info",
    "kept_functors",
    "merging_functors",
    "partner_functors",
    "plan_is_watched",
    "plan_options",
    "recorded_passes",
    "why_not",
    "why_not_loaded",
]
