"""Model folders on the Hugging Face hub. huggingface_hub is imported only here, when a hub is asked for."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError
from dmlcore.serving.model_folder import read_config

SCHEME = "hf://"
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md", "*.py"]


def fetched(name: str) -> Path:
    """The folder of a model on the hub, out of the local cache where it is there already.

    Args:
        name: `hf://OWNER/NAME`, with `@REVISION` where that is meant.

    Raises:
        ConfigError: no such name, or the hub cannot be reached.
    """
    place = name.removeprefix(SCHEME)
    if not _NAME.fullmatch(place):
        raise ConfigError(f"'{name}' is no model on the hub: give {SCHEME}OWNER/NAME")
    owner, _, revision = place.partition("@")
    hub = _hub()
    try:
        return Path(hub.snapshot_download(owner, revision=revision or None, allow_patterns=_FILES))
    except Exception as error:  # of many types: no network, no such repository, no permission
        raise ConfigError(f"'{name}' cannot be fetched from the hub: {_reason(error)}") from error


def push(folder: str | Path, name: str, *, is_private: bool = True) -> str:
    """Put a model folder on the hub.

    Args:
        folder: that `dmlcore export` wrote.
        name: `OWNER/NAME`, with or without `hf://`. It is made where it does not exist.
        is_private: of a repository that is made.

    Returns:
        Its address.

    Raises:
        ConfigError: no model folder, no such name, or the hub cannot be reached or refuses.
    """
    folder, name = Path(folder), name.removeprefix(SCHEME)
    read_config(folder)
    if not _NAME.fullmatch(name) or "@" in name:
        raise ConfigError(f"'{name}' is no name on the hub: give OWNER/NAME")
    hub = _hub()
    try:
        hub.create_repo(name, private=is_private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Add a model of dmlcore"))
    except Exception as error:  # as above
        raise ConfigError(f"{folder} cannot be put on the hub as '{name}': {_reason(error)}") from error


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(f"the hub needs the package huggingface_hub ({error}): `pip install huggingface_hub`") from None


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__)[:200]
