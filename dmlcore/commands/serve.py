"""`dmlcore serve`: a model or an index behind HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING
from dmlcore.commands.words import loading
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

_TOKEN = "DMLCORE_TOKEN"
_LIMITS = [
    ("max_megabytes", "megabytes", float, 10.0, "Largest request, megabytes."),
    ("max_samples", "samples", int, 256, "Most samples of a request."),
    ("max_megapixels", "megapixels", float, 50.0, "Largest picture, megapixels."),
    ("max_waiting", "waiting", int, 1024, "Samples that may wait for the model before requests are sent away."),
    ("timeout", "seconds", float, 30.0, "Seconds that a request may take."),
    ("batch", "batch", int, 64, "Samples of concurrent requests that the model takes at a time."),
]


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        flag("what", Path, "Folder of an index, of a run, or of an exported model.", is_positional=True),
        flag("model", str | None, "The model that embeds for the index (default: the one that it was built with)."),
        flag(
            "threshold",
            str | None,
            "Cosine from which a neighbour is an answer, and two samples are the same: a number, or `none` (default: what"
            " `dmlcore verify` kept).",
        ),
        flag("host", str, "Address to listen at; 0.0.0.0 is all of this computer's.", "127.0.0.1"),
        flag("port", int, "Port to listen at; 0 is any that is free.", 8000),
        flag("token_file", Path | None, f"File with a token that requests must bring (or the variable {_TOKEN})."),
        *(flag(name, kind, text, default) for name, _, kind, default, text in _LIMITS),
        *LOADING,
        *COMMON,
    ]
    app.command(command(_serve, flags, "Serve a model or an index over HTTP."), name="serve")


def _serve(
    what: Path,
    *,
    model: str | None,
    threshold: str | None,
    host: str,
    port: int,
    token_file: Path | None,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    from dmlcore.serving.http import Limits, Service, run_server
    from dmlcore.serving.http.app import fastapi
    from dmlcore.serving.http.server import bound, is_loopback
    from dmlcore.serving.loading import load
    from dmlcore.serving.thresholds import chosen_threshold

    limits = Limits(**{name: values.pop(key) for key, name, *_ in _LIMITS})
    token = _token(token_file)
    fastapi()  # what is missing is said before anything is loaded
    with bound(host, port) as listening:
        index, path = _index_of(what, model)
        loaded = load(path, **loading(values))
        limit, origin = chosen_threshold(threshold, path, loaded.fingerprint())
        service = Service(loaded, index, limit, limits)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        if not is_loopback(host) and token is None:
            console.say("warning: whoever reaches this address may use it; --token-file FILE asks for a token")
        if limit is None and origin:
            console.say(origin)
        if json:
            console.show_json({"url": address, **service.describe()})
        else:
            served = f"{service.describe()['entries']:,} entries of {what}" if index is not None else f"the model of {what}"
            console.show(f"Serving {served} at {address} (Ctrl-C ends)")
        sys.stdout.flush()  # whoever started this in a pipe waits for the address
        try:
            run_server(service, listening, token=token, tell=console.say)
        except KeyboardInterrupt:
            console.say(f"stopped after {service.counts.answered:,} requests")
    return 0


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(_TOKEN) or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token cannot be read from '{file}': {getattr(error, 'strerror', None) or error}") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"the token in '{file}' must be one word of letters, digits and signs")
    return token


def _index_of(what: Path, model: str | None) -> tuple[Any, str | Path]:
    """The index, None where a model is named, and the path of the model."""
    from dmlcore.files import expanded
    from dmlcore.serving.index import Index
    from dmlcore.serving.index_files import IndexFolder
    from dmlcore.serving.search import model_of

    if not IndexFolder(expanded(what)).is_index():
        if model is not None:
            raise ConfigError(f"'{what}' is no index; --model is for one")
        return None, what
    index = Index(what)
    path = model_of(index, model)
    if path is None:
        raise ConfigError(f"the index in {what} was built from embeddings; name the model that makes them by --model")
    return index, path
