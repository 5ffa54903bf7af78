"""The pages of runs that are loaded: one of a run in its folder, or one that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlcore.data import Splits
from dmlcore.errors import ConfigError, DataError
from dmlcore.files import make_folder, write_atomically
from dmlcore.reports.comparison_page import comparison_page
from dmlcore.reports.run_facts import RunFacts
from dmlcore.reports.run_page import run_page
from dmlcore.serving.run import TrainedRun
from dmlcore.training import reporting
from dmlcore.training.folder import RunFolder


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    trusts_plugins: bool = False,
) -> Path:
    """Write the page of a run, or a page that compares several.

    Args:
        runs: their folders, at least one.
        out: the .html file; None: `report.html` in the folder of a single run, `comparison.html` here for several.
        checkpoint: `best`, `last` or `previous`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trusts_plugins: run the files of code that the folders' `config.toml` name, whoever made them.

    Returns:
        The file.

    Raises:
        ConfigError: there is no run or no such checkpoint, a folder is named twice, or `out` is no .html file.
        DataError: the data of a run are gone, or have changed.
        TrainingError: a file of a run is damaged, or the page cannot be written.
    """
    if not runs:
        raise ConfigError("no run is given; name the folder of one, or of several to compare them")
    folders = [Path(run) for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a run is given twice; name each folder once")
    path = Path(out) if out is not None else RunFolder(folders[0]).report if len(folders) == 1 else Path("comparison.html")
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"out is '{path}', but must end in .html")
    options: dict[str, Any] = {"checkpoint": checkpoint, "device": device, "trusts_plugins": trusts_plugins}
    facts = [gather_run(folder, with_umap=len(folders) == 1, **options) for folder in folders]
    make_folder(path.parent)
    write_atomically(path, run_page(facts[0]) if len(facts) == 1 else comparison_page(facts))
    return path


def gather_run(
    folder: str | Path,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    trusts_plugins: bool = False,
    with_umap: bool = False,
) -> RunFacts:
    """What a page tells of a run. Arguments and errors are those of `write_report`."""
    trained = TrainedRun(folder, checkpoint=checkpoint, device=device, trusts_plugins=trusts_plugins)
    result = trained.folder.read_result() if trained.folder.result.exists() else None
    return reporting.gather(
        trained.folder,
        trained.config,
        trained.model,
        _open(trained),
        step=trained.step,
        result=result,
        device=trained.device,
        with_umap=with_umap,
    )


def _open(trained: TrainedRun) -> Splits:
    try:
        return trained.open()
    except DataError as error:
        raise DataError(f"the page of {trained.folder.path} needs the run's data: {error}") from error
