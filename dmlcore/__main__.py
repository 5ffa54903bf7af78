"""`python -m dmlcore` is `dmlcore`."""

from __future__ import annotations

from dmlcore.cli import script

script()
