"""Training within a cell of a grid: begun, or gone on with where an earlier attempt stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from dmlcore.data import RecordedSplit
from dmlcore.errors import TrainingError
from dmlcore.files import move_folder, plain, remove, write_atomically
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import RunFolder


def trained(
    config: RunConfig,
    work: Path,
    settings: dict[str, Any],
    *,
    writes_page: bool = False,
    split: RecordedSplit | None = None,
) -> dict[str, Any]:
    """The result of training in `work/run`, from where an earlier attempt with the same settings stopped.

    Args:
        config: of the run.
        work: the cell's own folder. What another cell left there is removed.
        settings: of the cell.
        writes_page: of a run that is kept.
        split: of the data; None: what these or the seed say.
    """
    from dmlcore.training import train
    from dmlcore.training.loggers import TaskLogger

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
        remove(folder.result)
    if folder.config.exists() and any(folder.checkpoints.glob("*.pt")):
        return train(resume=folder.path, loggers=[TaskLogger()])
    shutil.rmtree(folder.path, ignore_errors=True)
    if not writes_page:
        config = dataclasses.replace(config, settings=config.settings.replace(report=False))
    return train(config, out=folder.path, recorded=split, loggers=[TaskLogger()])


def trained_and_moved(
    config: RunConfig, work: Path, settings: dict[str, Any], place: Path, split: RecordedSplit | None = None
) -> dict[str, Any]:
    """As `trained`; the run, with its page, lies in `place` when it is done."""
    result = trained(config, work, settings, writes_page=True, split=split)
    move_folder(work / "run", place)
    return result


def headline(result: dict[str, Any]) -> str:
    """The measures of the test classes in a few words."""
    test = result["metrics"]["test"]
    return "  ".join(f"{label} {test[key]:.3f}" for label, key in (("R@1", "recall@1"), ("MAP@R", "map@r")) if key in test)
