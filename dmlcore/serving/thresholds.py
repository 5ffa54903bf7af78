"""The threshold of a model: kept beside it as JSON, from `dmlcore verify` to whoever must say `none of these`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, TrainingError
from dmlcore.files import expanded, plain, write_atomically
from dmlcore.seals import SealError, seal, unseal

NAME = "threshold.json"


def threshold_file(model: str | Path) -> Path:
    """Where the threshold of a model lies: in its folder, or beside a file of embeddings as `NAME.threshold.json`."""
    path = expanded(model)
    return path / NAME if path.is_dir() else path.with_name(f"{path.name}.{NAME}")


def write_threshold(model: str | Path, about: dict[str, Any]) -> Path:
    """Keep what `AllPairs.threshold` gave. Errors are those of `write_atomically`."""
    path = threshold_file(model)
    write_atomically(path, json.dumps(seal(plain(about)), indent=2).encode())
    return path


def read_threshold(model: str | Path) -> dict[str, Any] | None:
    """What is kept of a model, or None where nothing is.

    Raises:
        TrainingError: the file is damaged.
    """
    path = threshold_file(model)
    if not path.is_file():
        return None
    try:
        about, is_sealed = unseal(json.loads(path.read_bytes()))
    except (SealError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged: {error}. `dmlcore verify` writes it again") from error
    value = about.get("threshold") if isinstance(about, dict) else None
    if not is_sealed or not isinstance(value, int | float) or not math.isfinite(value):
        raise TrainingError(f"{path} holds no threshold. `dmlcore verify` writes it again")
    return about


def chosen_threshold(word: str | None, model: str | Path | None, fingerprint: str = "") -> tuple[float | None, str]:
    """The threshold to use, and where it comes from in words.

    Args:
        word: what the user asked for: a number, `none`, or None for what is kept of the model.
        model: its path, or None.
        fingerprint: of the model that embeds now. What was kept before it was trained on is not used. Empty: not known.

    Raises:
        ConfigError: the word is neither.
    """
    if word is None:
        about = read_threshold(model) if model is not None else None
        if about is None:
            return None, "no threshold is kept of the model; `dmlcore verify` finds one"
        if fingerprint and about.get("fingerprint", fingerprint) != fingerprint:
            return None, "the threshold that is kept is of other weights of the model; `dmlcore verify` finds one for these"
        rate = about.get("wanted_far")
        return float(about["threshold"]), "" if rate is None else f"for a false-accept rate of {rate:g} a pair"
    if word.lower() == "none":
        return None, ""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"threshold is '{word}', but must be a number or `none`")
    return value, "as asked for"
