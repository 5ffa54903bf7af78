"""`dmlcore embed`: write the embeddings of anything that a model takes as a file."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from dmlcore import console, launch
from dmlcore.commands.line import CommandLine
from dmlcore.commands.sharing import SHARING, started
from dmlcore.commands.trained import ENCODING, LOADING, MODEL, data_options
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

_SOURCE = "What to embed: a picture, a folder of pictures, a table, a text file with a text per line, or a data set's name."


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        MODEL,
        flag("source", str, _SOURCE, "", is_positional=True),
        flag("data", str | None, "The same as a flag."),
        flag("out", Path, "The file to write: .npz, .npy, .parquet or .arrow.", inspect.Parameter.empty),
        flag("overwrite", bool, "Replace the file if it exists.", False),
        *ENCODING,
        *line.add_data("embed", place=2),
        *LOADING,
        *SHARING,
        *COMMON,
    ]

    def embed(*arguments: Any, processes: int, timeout: str, **values: Any) -> int:
        if (status := started(processes, line.words)) is not None:
            return status
        from dmlcore.serving.processes import sharing

        with sharing(values["device"], timeout) as device:
            return _embed(*arguments, **{**values, "device": device})

    app.command(command(embed, flags, "Write the embeddings of anything that a model takes as a file."), name="embed")


def _embed(
    model: str,
    source: str,
    *,
    data: str | None,
    out: Path,
    overwrite: bool,
    batch_size: int,
    workers: int | None,
    precision: Literal["fp32", "bf16", "fp16"],
    checkpoint: str,
    device: str,
    trust_plugins: bool,
    json: bool,
    debug: bool,
    **tables: Any,
) -> int:
    from dmlcore.ranks.dividing import agreeing, dividing
    from dmlcore.serving import load, write_embeddings

    if bool(source) == bool(data):
        raise ConfigError(
            "both INPUT and --data say what to embed; leave one out"
            if source
            else "nothing to embed is given: name it behind the model, as in `dmlcore embed MODEL photos --out x.npz`"
        )
    with agreeing(dividing()):
        trained = load(model, checkpoint=checkpoint, device=device, trust_plugins=trust_plugins)
    result = write_embeddings(
        trained,
        source or data,
        out,
        data_options(tables),
        overwrite=overwrite,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        note=console.say,
    )
    if launch.is_silent():
        return 0
    if json:
        console.show_json(result)
    else:
        for text in result["notes"]:
            console.say(text)
        count, length = result["samples"], result["embedding_dim"]
        noun = "embedding" if count == 1 else "embeddings"
        names = result.get("arrays") or result["columns"]
        console.show(f"{count:,} {noun} of {length} in {out} ({', '.join(names)})")
        if "beside" in result:
            console.show(f"Which samples these are: {result['beside']} ({', '.join(result['columns'])})")
    return 0
