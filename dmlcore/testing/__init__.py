"""The conformance kit for authors of plugins: what users of every loss, miner, weighting, ... rely on, as checks with a report.

In a test: `check_loss(MyLoss)`, or `check(MyMiner)` for anything else. On the command line: `dmlcore plugins check NAME`.
"""

from dmlcore.testing.components import check, kind_of, run_checks_of
from dmlcore.testing.losses import check_loss, run_checks
from dmlcore.testing.report import Check, Report
from dmlcore.testing.statements import naming_both

__all__ = ["Check", "Report", "check", "check_loss", "kind_of", "naming_both", "run_checks", "run_checks_of"]
