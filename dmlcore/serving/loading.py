"""From a path to a trained model: the folder of a run, or one that was exported."""

from __future__ import annotations

from pathlib import Path

from dmlcore.errors import ConfigError
from dmlcore.files import expanded
from dmlcore.serving.model import Model
from dmlcore.serving.run import TrainedRun
from dmlcore.training.folder import RunFolder


def load(path: str | Path, *, checkpoint: str = "best", device: str = "auto", trust_plugins: bool = False) -> Model:
    """A trained model, ready to use.

    Args:
        path: the folder of a run.
        checkpoint: of a run: `best`, `last` or `previous`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_plugins: run the files of code that the folder names, whoever made it.

    Raises:
        ConfigError: there is no model, or it needs code that was not consented to.
        TrainingError: a file of it is damaged.
    """
    folder = RunFolder(expanded(path))
    if folder.config.is_file():
        return TrainedRun(folder.path, checkpoint=checkpoint, device=device, trusts_plugins=trust_plugins)
    if not folder.path.exists():
        raise ConfigError(f"there is no '{path}': give the folder of a run")
    raise ConfigError(f"'{path}' holds no trained model: there is no {folder.config.name} of a run")
