"""Checkpoints: `last` continues a run exactly, `previous` is the one before it, `best` holds the weights to evaluate.

Files are written atomically and read with `weights_only`, so that opening one runs no code from it. Each carries a checksum.
At every moment of a write an intact checkpoint lies in the folder: under its own name, under the name of a fresh one
(`last.new.pt`), or as the one before it (`previous.pt`, `best.before.pt`).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from dmlcore.data import KINDS_OF_DATA
from dmlcore.errors import ConfigError, TrainingError, first_line
from dmlcore.files import code_in, sync_folder, write_atomically, write_error
from dmlcore.seals import SealError, check_archive, seal_archive

FORMAT = "dmlcore-checkpoint-2"
NAMES = ("best", "last", "previous")
BEFORE = {"last": "previous", "best": "best.before"}
"""Under which name the checkpoint that is replaced stays."""
SHARDS = "shards-"
"""How the names of folders begin that hold what several processes divide; `divided.py` writes them."""
_START = "start"


def path_of(folder: Path, name: str) -> Path:
    """Where a checkpoint of a name lies in the folder of checkpoints."""
    if name not in NAMES:
        raise ConfigError(f"there is no checkpoint '{name}'; known: {', '.join(NAMES)}")
    return _file(folder, name)


def save(folder: Path, name: str, state: dict[str, Any]) -> Path:
    """Write a checkpoint. The one of that name that exists stays as in `BEFORE`.

    Args:
        folder: the run's folder of checkpoints.
        name: `last` or `best`.
        state: tensors, numbers, texts, lists and dicts, with at least what `_check_weights` asks for.

    Returns:
        Its path.

    Raises:
        TrainingError: it cannot be written; the earlier ones are intact.
    """
    write_atomically(_file(folder, f"{name}.new"), _sealed(state))
    return _put_in_place(folder, name)


def save_start(folder: Path, state: dict[str, Any]) -> None:
    """Write `start.pt`: the weights that a run began with, where its configuration cannot make them again.

    Raises:
        TrainingError: it cannot be written.
    """
    write_atomically(_file(folder, _START), _sealed(state))


def load_start(folder: Path) -> dict[str, Any] | None:
    """What `save_start` wrote; None: nothing.

    Raises:
        TrainingError: it is damaged.
    """
    path = _file(folder, _START)
    if not path.exists():
        return None
    try:
        return _read(path, "cpu")
    except Exception as error:
        raise TrainingError(f"{path}, the weights that the run began with, is damaged ({_first_line(error)})") from error


def forget_best_before(folder: Path) -> None:
    """Remove the best checkpoint but one, which no state names any more."""
    with contextlib.suppress(OSError):
        _file(folder, BEFORE["best"]).unlink(missing_ok=True)


def forget_shards(folder: Path, kept: Collection[str]) -> None:
    """Remove the folders of shards that no checkpoint names any more.

    Args:
        folder: the run's folder of checkpoints.
        kept: names of those that are named.
    """
    for path in folder.glob(f"{SHARDS}*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def load(folder: Path, name: str, device: torch.device | str = "cpu", instead: Sequence[str] = NAMES) -> dict[str, Any]:
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
    except _Foreign as error:
        raise TrainingError(f"{path} {error}") from None
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


def load_newest(folder: Path, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest intact checkpoint to continue from, whichever file an interrupted write left it in. None: there is no file.

    Args:
        folder: the run's folder of checkpoints.
        note: is told in a sentence where it is not `last.pt`.

    Raises:
        TrainingError: there are files, and none is intact.
    """
    newest, name_of_newest, faults = None, "", {}
    for name in ("last.new", "last", "previous"):
        path = _file(folder, name)
        if name == "previous" and newest is not None:
            break  # it is older than any `last`
        if not path.exists():
            continue
        try:
            state = _read(path, "cpu")
        except Exception as error:
            faults[path] = _first_line(error)
            continue
        if newest is None or state["step"] > newest["step"]:
            newest, name_of_newest = state, name
    if newest is None and faults:
        told = "; ".join(f"{path.name}: {fault}" for path, fault in faults.items())
        raise TrainingError(f"no checkpoint in {folder} is intact ({told}). Start again in another folder.")
    if newest is not None and name_of_newest != "last":
        why = "".join(f" {path.name} is damaged ({fault})." for path, fault in faults.items())
        note(f"the run goes on from {name_of_newest}.pt, the newest intact checkpoint, of step {newest['step']}.{why}")
    if name_of_newest == "last.new":  # finish what was interrupted
        _put_in_place(folder, "last")
    for name in ("last", "best"):
        with contextlib.suppress(OSError):
            _file(folder, f"{name}.new").unlink(missing_ok=True)
    return newest


def check_best(folder: Path, step: int, now: int) -> None:
    """See that `best.pt` is the one that a state names, and bring it back where a later one replaced it.

    Args:
        folder: the run's folder of checkpoints.
        step: of the best checkpoint by the state.
        now: the step of the state. A best one from beyond it is written anew when the run gets there.

    Raises:
        TrainingError: it is another one, or damaged.
    """
    if step < 0:
        return
    path, faults = path_of(folder, "best"), []
    for name in ("best", BEFORE["best"]):
        if not _file(folder, name).exists():
            faults.append(f"there is no {name}.pt")
            continue
        try:
            there = _read(_file(folder, name), "cpu")["step"]
        except Exception as error:
            faults.append(f"{name}.pt is damaged ({_first_line(error)})")
            continue
        if there == step:
            if name != "best":
                _rename(_file(folder, name), path)
            return
        if name == "best" and there > now:
            faults.append(f"{name}.pt is of step {there}, beyond the state")
            continue
        faults.append(f"{name}.pt is of step {there}")
    if faults[0].endswith("beyond the state"):
        return
    raise TrainingError(f"the best checkpoint of this run is of step {step}, but in {folder} {', and '.join(faults)}")


def _put_in_place(folder: Path, name: str) -> Path:
    """Give a fresh checkpoint its name, and the one that has it the name in `BEFORE`."""
    path = path_of(folder, name)
    if path.exists():
        try:
            _keep(path, _file(folder, BEFORE[name]))
        except OSError as error:
            raise write_error(path, error) from error
    _rename(_file(folder, f"{name}.new"), path)
    return path


def _rename(file: Path, path: Path) -> None:
    try:
        os.replace(file, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _keep(path: Path, before: Path) -> None:
    """Give a file a second name, so that the first one never lacks it. A file system without links renames it."""
    link = before.with_name(f".{before.name}.{os.getpid()}.tmp")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:
        os.replace(path, before)
    else:
        os.replace(link, before)
        link.unlink(missing_ok=True)  # where both names were of one file already, nothing was renamed


def _sealed(state: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()  # torch's own file writer reports a full disk as an opaque RuntimeError
    torch.save({"format": FORMAT, **state}, buffer)
    seal_archive(buffer)
    return buffer.getbuffer()


class _Foreign(Exception):
    """A file that is whole, but no checkpoint of this version of dmlcore."""


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pt"


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    content = path.read_bytes()
    is_sealed = check_archive(content)
    state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        form = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise _Foreign(f"is no checkpoint of this version of dmlcore: its format is {str(form)[:40]!r}, not {FORMAT!r}")
    if not is_sealed:
        raise SealError("it has no checksum")
    _check_weights(state)
    _check_shards(path.parent, state)
    return state


def _check_shards(folder: Path, state: dict[str, Any]) -> None:
    """Refuse a state whose folder of shards is not there. What lies in it is checked when it is read."""
    shards = state.get("shards")
    if shards is None:
        return
    texts = [shards["folder"], *shards["files"], *shards["files"].values()]
    if not all(isinstance(text, str) and "/" not in text and text not in ("", ".", "..") for text in texts):
        raise ValueError("its 'shards' is wrong")
    for place, classes, each, tail, dtype in shards["tables"]:
        sizes = (classes, each, *tail)
        if (
            not all(map(is_count, sizes))
            or not isinstance(getattr(torch, dtype, None), torch.dtype)
            or len(place) not in (2, 3)
            or not isinstance(state.get(place[0]), dict)
        ):
            raise ValueError("its 'shards' is wrong")
    missing = [name for name in shards["files"] if not (folder / shards["folder"] / name).is_file()]
    if missing:
        raise ValueError(f"{shards['folder']}/{missing[0]} is missing")


def _check_weights(state: dict[str, Any]) -> None:
    """Refuse a file that does not hold what every checkpoint does, in the types of it."""
    shape = state.get("sample_shape")
    is_right = {
        "config": isinstance(state.get("config"), dict) and _is_plain(state["config"]),
        "step": is_count(state.get("step")),
        "kind": state.get("kind") in KINDS_OF_DATA if isinstance(state.get("kind"), str) else False,
        "sample_shape": isinstance(shape, list) and len(shape) in (1, 3) and all(is_count(n) and n > 0 for n in shape),
        "model": _is_state(state.get("model")),
        "ensemble": _is_state(state.get("ensemble")),
    }
    if "optimiser" in state:  # one to continue from
        is_right["records"] = _is_mark(state.get("records"))
    for name, right in is_right.items():
        if not right:
            raise ValueError(f"its '{name}' is {'wrong' if name in state else 'missing'}")


def _is_mark(value: Any) -> bool:
    """Whether a value can be what `RunFolder.mark_of_records` gave."""
    return isinstance(value, dict) and is_count(value.get("size")) and isinstance(value.get("sha256"), str)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, not below zero and of 63 bits at most."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_plain(value: Any) -> bool:
    """Whether a value is one that a configuration may hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | bool | None)


def _is_state(value: Any) -> bool:
    """Whether a value can be the state of a module."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _first_line(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it is empty or cut off"
    return first_line(error)[:120]
