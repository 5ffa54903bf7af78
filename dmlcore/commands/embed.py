"""`dmlcore embed`: write the embeddings of data as an .npz file."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING, RUN, data_options
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        RUN,
        flag("data", str, "What to embed: a data set's name or a path.", inspect.Parameter.empty),
        flag("out", Path, "The .npz file to write.", inspect.Parameter.empty),
        flag("overwrite", bool, "Replace the file if it exists.", False),
        *line.add_data("embed"),
        *LOADING,
        *COMMON,
    ]
    app.command(command(_embed, flags, "Write the embeddings of data as an .npz file."), name="embed")


def _embed(
    run: Path,
    *,
    data: str,
    out: Path,
    overwrite: bool,
    checkpoint: str,
    device: str,
    trust_plugins: bool,
    json: bool,
    debug: bool,
    **tables: Any,
) -> int:
    from dmlcore.serving import TrainedRun, write_embeddings

    trained = TrainedRun(run, checkpoint=checkpoint, device=device, trusts_plugins=trust_plugins)
    result = write_embeddings(trained, data, out, data_options(tables), overwrite=overwrite)
    if json:
        console.show_json(result)
    else:
        for note in result["notes"]:
            console.say(note)
        count, length = result["samples"], result["embedding_dim"]
        console.show(f"{count:,} embeddings of {length} in {out} ({', '.join(result['arrays'])})")
    return 0
