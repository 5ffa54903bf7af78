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
from dmlcore.files import code_in, write_atomically, write_error

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
        if code := code_in(error, path):
            raise TrainingError(
                f"the checkpoint {path} holds code ({code}), which dmlcore never writes and never runs: it comes from"
                f" elsewhere. Nothing of it was loaded. {advice}"
            ) from error
        raise TrainingError(f"the checkpoint {path} is damaged ({_first_line(error)}). {advice}") from error


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    state = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    _check_weights(state)
    return state


def _check_weights(state: dict[str, Any]) -> None:
    """Refuse a file that does not hold what every checkpoint does, in the types of it."""
    shape = state.get("sample_shape")
    is_right = {
        "step": is_count(state.get("step")),
        "kind": state.get("kind") in ("images", "features") if isinstance(state.get("kind"), str) else False,
        "sample_shape": isinstance(shape, list) and len(shape) in (1, 3) and all(is_count(n) and n > 0 for n in shape),
        "model": _is_state(state.get("model")),
        "ensemble": _is_state(state.get("ensemble")),
    }
    for name, right in is_right.items():
        if not right:
            raise ValueError(f"its '{name}' is {'wrong' if name in state else 'missing'}")


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, not below zero and of 63 bits at most."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_state(value: Any) -> bool:
    """Whether a value can be the state of a module."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _first_line(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it is empty or cut off"
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]
