"""`dmlcore export`: a trained model as a folder of its own, or in a form of other libraries."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING, MODEL
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        MODEL,
        flag("out", Path, "The folder to write.", inspect.Parameter.empty),
        flag("safetensors", bool, "A model folder, which `dmlcore.load` reads (this is the default).", False),
        flag("hf", bool, "A folder that sentence-transformers reads.", False),
        flag("licence", str | None, "Of the model, such as mit or cc-by-4.0, for its card."),
        flag("name", str | None, "Of the model, for its card (default: that of the folder)."),
        flag("overwrite", bool, "Replace a model folder that exists.", False),
        *LOADING,
        *COMMON,
    ]
    app.command(command(_export, flags, "Write a trained model in a form of its own."), name="export")


def _export(
    model: str,
    *,
    out: Path,
    safetensors: bool,
    hf: bool,
    licence: str | None,
    name: str | None,
    overwrite: bool,
    checkpoint: str,
    device: str,
    trust_plugins: bool,
    json: bool,
    debug: bool,
) -> int:
    from dmlcore.serving import export_folder, load

    if safetensors and hf:
        raise ConfigError("--safetensors and --hf are two forms; leave one out")
    trained = load(model, checkpoint=checkpoint, device=device, trust_plugins=trust_plugins)
    result: dict[str, Any] = export_folder(
        trained, out, form="hf" if hf else "safetensors", name=name, licence=licence, overwrite=overwrite
    )
    if json:
        console.show_json(result)
        return 0
    console.show(f"{out}: {', '.join(result['files'])} ({result['bytes'] / 1e6:,.1f} MB)")
    console.show_sentences(result["use"])
    return 0
