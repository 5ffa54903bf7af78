"""Training within a cell of a grid: begun, or gone on with where an earlier attempt stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from dmlcore.errors import TrainingError
from dmlcore.files import plain, write_atomically
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder


def trained(config: RunConfig, work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The result of training in `work/run`, from where an earlier attempt with the same settings stopped.

    Args:
        config: of the run.
        work: the cell's own folder. What another cell left there is removed.
        settings: of the cell.
    """
    from dmlcore.training import train

    note = work / "settings.json"
    text = json.dumps(plain(settings), sort_keys=True).encode()
    if not note.exists() or note.read_bytes() != text:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(note, text)
    folder = RunFolder(work / "run")
    if folder.result.exists():
        with contextlib.suppress(TrainingError):  # one that is damaged is made again
            return folder.read_result()
        folder.result.unlink()
    if folder.config.exists() and any(folder.checkpoints.glob("*.pt")):
        return train(resume=folder.path)
    shutil.rmtree(folder.path, ignore_errors=True)
    return train(config, out=folder.path)
