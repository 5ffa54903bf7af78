"""`dmlcore push`: put a model folder on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        flag("folder", Path, "A folder that `dmlcore export` wrote.", is_positional=True),
        flag("name", str, "OWNER/NAME on the hub, made where it does not exist.", is_positional=True),
        flag("public", bool, "A repository that is made may be seen by everybody.", False),
        *COMMON,
    ]
    app.command(command(_push, flags, "Put a model folder on the Hugging Face hub."), name="push")


def _push(folder: Path, name: str, *, public: bool, json: bool, debug: bool) -> int:
    from dmlcore.serving import push

    address = push(folder, name, is_private=not public)
    console.show_json({"folder": str(folder), "address": address}) if json else console.show(f"{folder} is at {address}")
    return 0
