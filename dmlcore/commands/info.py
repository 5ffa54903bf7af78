"""`dmlcore info`: versions, devices, and what the kernels can do here."""

from __future__ import annotations

from cyclopts import App

from dmlcore import console
from dmlcore.description import describe_system
from dmlcore.flags import COMMON, command
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App) -> None:
    app.command(command(_info, COMMON, "Show versions, devices and what the kernels can do here."), name="info")


def _info(*, json: bool, debug: bool) -> int:
    facts = describe_system()
    console.show_json(facts) if json else console.show_facts(facts)
    return 0
