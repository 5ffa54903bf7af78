"""Checkpoints: `last` continues a run exactly, `previous` is the one before it, `best` holds the weights to evaluate.

Files are written atomically and read with `weights_only`, so that opening one runs no code from it.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from dmlcore.errors import ConfigError, TrainingError
from dmlcore.files import write_atomically, write_error

FORMAT = "dmlcore-checkpoint-1"
NAMES = ("best", "last", "previous")


def path_of(folder: Path, name: str) -> Path:
    """Where a checkpoint of a name lies in the folder of checkpoints."""
    if name not in NAMES:
        raise ConfigError(f"there is no checkpoint '{name}'; known: {', '.join(NAMES)}")
    return folder / f"{name}.pt"


def save(folder: Path, name: str, state: dict[str, Any]) -> Path:
    """Write a checkpoint; a `last` that exists becomes `previous`.

    Args:
        folder: the run's folder of checkpoints.
        name: one of `NAMES`.
        state: tensors, numbers, texts, lists and dicts.

    Returns:
        Its path.

    Raises:
        TrainingError: it cannot be written; the earlier ones are intact.
    """
    buffer = io.BytesIO()  # torch's own file writer reports a full disk as an opaque RuntimeError
    torch.save({"format": FORMAT, **state}, buffer)
    path = path_of(folder, name)
    fresh = path.with_name(f"{name}.new.pt")
    write_atomically(fresh, buffer.getbuffer())
    try:
        if name == "last" and path.exists():
            os.replace(path, path_of(folder, "previous"))
        os.replace(fresh, path)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def load(folder: Path, name: str, device: torch.device | str = "cpu", instead: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        folder: the run's folder of checkpoints.
        name: one of `NAMES`.
        device: where its tensors go.
        instead: names of those that would serve as well, offered when this one is damaged.

    Raises:
        ConfigError: there is none of that name.
        TrainingError: it is damaged or of another format; the message names one that is intact.
    """
    path = path_of(folder, name)
    if not path.exists():
        saved = [other for other in NAMES if path_of(folder, other).exists()]
        raise ConfigError(
            f"there is no checkpoint {path}" + (f"; there is: {', '.join(saved)}" if saved else "; the run saved none")
        )
    try:
        return _read(path, device)
    except Exception as error:
        advice = "No other checkpoint is intact; start again."
        for other in instead:
            try:
                step = _read(path_of(folder, other), "cpu")["step"]
            except Exception:
                continue
            advice = f"{path_of(folder, other)} is intact (step {step}): use it with --checkpoint {other}."
            break
        raise TrainingError(f"the checkpoint {path} is damaged ({_first_line(error)}). {advice}") from error


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    return state


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]
