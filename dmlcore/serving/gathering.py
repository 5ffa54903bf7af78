"""Entries out of whatever the user names: a file of embeddings as it is, other data through a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError
from dmlcore.files import expanded
from dmlcore.ranks.dividing import dividing
from dmlcore.serving.entries import SUFFIXES, Entries, is_embeddings, read_embeddings
from dmlcore.serving.model import Model


def gather(data: Any, model: Model | None = None, options: dict[str, Any] | None = None) -> Entries:
    """Entries of data.

    Args:
        data: a file that `dmlcore embed` wrote, or with a model anything that `Model.embed` takes.
        model: embeds the data. None: they are embeddings already.
        options: of the data.

    Raises:
        ConfigError: the data need a model, or are embeddings of another length or model than the model's.
        DataError: the data cannot be used.
    """
    if isinstance(data, str | Path):
        path = expanded(data)
        if model is None:
            if path.suffix not in SUFFIXES:
                raise ConfigError(f"'{data}' is no file of embeddings ({', '.join(SUFFIXES)}); name the model that embeds it")
            return read_embeddings(path)
        if is_embeddings(path):
            entries = read_embeddings(path)
            if entries.vectors.shape[1] != model.embedding_dim:
                raise ConfigError(
                    f"'{data}' holds embeddings of {entries.vectors.shape[1]}, but {model.name} gives {model.embedding_dim}"
                )
            if entries.model and entries.model != model.fingerprint():
                raise ConfigError(f"'{data}' holds embeddings of another model than {model.name}, or of other weights of it")
            entries.notes.append(f"'{data}' holds embeddings, which are taken as they are")
            return entries
    elif model is None:
        raise ConfigError("data that are no file of embeddings need a model")
    embedded = model.embed(data, options)
    columns = {} if embedded.splits is None else {"split": embedded.splits}
    return Entries(
        embedded.embeddings, embedded.paths, embedded.rows, embedded.labels, columns, list(embedded.notes), model.fingerprint()
    )


def gather_on_first(data: str, model: Model | None, options: dict[str, Any]) -> Entries | None:
    """`gather`, where ranks divide the work and all call this: the first has the entries, the others None."""
    group = dividing()
    if group is None or group.rank == 0:
        return gather(data, model, options)
    if model is not None and not is_embeddings(expanded(data)):
        model.embed(data, options)  # its part of the work
    return None


def is_model(path: str | Path) -> bool:
    """Whether a word of a command means a model, and not a file of embeddings."""
    return expanded(path).suffix not in SUFFIXES
