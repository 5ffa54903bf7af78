"""From a path to a trained model: the folder of a run, a model folder, or a model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from dmlcore.errors import ConfigError
from dmlcore.files import expanded
from dmlcore.serving.hub import SCHEME, fetched
from dmlcore.serving.model import Model
from dmlcore.serving.model_folder import CONFIG, read_model
from dmlcore.serving.run import TrainedRun
from dmlcore.training.folder import RunFolder


def load(path: str | Path, *, checkpoint: str = "best", device: str = "auto", trust_plugins: bool = False) -> Model:
    """A trained model, ready to use.

    Args:
        path: the folder of a run, a model folder that `dmlcore export` wrote, or `hf://OWNER/NAME` of one on the hub.
        checkpoint: of a run: `best`, `last` or `previous`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_plugins: run the files of code that the folder names, whoever made it.

    Raises:
        ConfigError: there is no model, or it needs code that was not consented to.
        TrainingError: a file of it is damaged.
    """
    if str(path).startswith(SCHEME):
        return read_model(fetched(str(path)), device=device, trust_plugins=trust_plugins)
    folder = RunFolder(expanded(path))
    if folder.config.is_file():
        return TrainedRun(folder.path, checkpoint=checkpoint, device=device, trusts_plugins=trust_plugins)
    if (folder.path / CONFIG).is_file():
        if checkpoint != "best":
            raise ConfigError(f"checkpoint is '{checkpoint}', but {path} is a model folder, which holds one model")
        return read_model(folder.path, device=device, trust_plugins=trust_plugins)
    forms = f"the folder of a run, one that `dmlcore export` wrote, or {SCHEME}OWNER/NAME"
    if not folder.path.exists():
        raise ConfigError(f"there is no '{path}': give {forms}")
    raise ConfigError(f"'{path}' holds no trained model: give {forms}")
