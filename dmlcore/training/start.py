"""Starting a run, or resuming one: what `dmlcore train` and `dmlcore.training.train` do."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlcore import plugins, trust
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError
from dmlcore.files import make_folder, write_atomically
from dmlcore.training import checkpoints
from dmlcore.training.building import build_components, open_splits
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import NO_SPLIT, RunFolder
from dmlcore.training.loggers import Logger
from dmlcore.training.loop import Training
from dmlcore.training.members import SEARCH, choose_members
from dmlcore.training.run import Run


def train(
    config: RunConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    checkpoint: str = "last",
    trusts_plugins: bool = False,
    loggers: Sequence[Logger] = (),
    **values: Any,
) -> dict[str, Any]:
    """Train and evaluate, as `dmlcore train` does.

    Args:
        config: what to do; or give settings and options by keyword: `train(plugins="ms", steps=100, ms={"alpha": 4})`.
        out: folder of the run; None gives `runs/<date-time>-<losses>`.
        resume: folder of a run to continue exactly; everything else comes from its `config.toml`.
        checkpoint: the checkpoint to continue from, `last` or `previous`.
        trusts_plugins: with `resume`: run the files of code that the folder's `config.toml` names, whoever made it.
        loggers: receivers of what happens, beside those the settings name.
        values: settings and options, instead of `config`.

    Returns:
        What `result.json` holds, with `run`, the folder.

    Raises:
        ConfigError: settings, options or data that cannot be used, or a folder that holds another run.
        TrainingError: a loss or gradient that is not finite, a full disk, a damaged checkpoint.
        PluginError: a plugin that breaks its contract.
        KeyboardInterrupt: an interrupt, after a checkpoint was saved; its text says how to continue.
    """
    if isinstance(loggers, str):
        raise ConfigError(
            f"loggers takes Logger objects, got '{loggers}'; loggers by name are a setting: RunConfig.create(loggers=...)"
        )
    state = None
    if resume is not None:
        if config is not None or values or out is not None:
            raise ConfigError("a resumed run takes everything from its config.toml; give no other settings beside resume")
        config, folder, state = _resumed(resume, checkpoint, trusts_plugins)
    else:
        if trusts_plugins:
            raise ConfigError("trusts_plugins is for resume; files that you name yourself are run anyway")
        config = config or RunConfig.create(**values)
        folder = RunFolder.choose(out, _names_of_losses(config))
    recorded = RecordedSplit.read(folder.split) if resume is not None and folder.split.exists() else None
    # What a resumed run builds comes from its folder still, such as a miner that is named in an option.
    with plugins.blaming(), trust.reading(_foreign(folder, trusts_plugins) if resume is not None else None):
        return _train(config, folder, [*build_components(config, "logger"), *loggers], state, recorded)


def _resumed(path: str | Path, checkpoint: str, trusts_plugins: bool) -> tuple[RunConfig, RunFolder, dict[str, Any] | None]:
    if checkpoint not in ("last", "previous"):
        raise ConfigError(f"checkpoint is '{checkpoint}', but a run continues from last or previous; best has no optimiser")
    folder = RunFolder.open(path)
    foreign = _foreign(folder, trusts_plugins)
    config = RunConfig.read_run(folder.config, foreign)  # first, or a run of another version would be sent on to `eval`
    if folder.result.exists():
        raise ConfigError(f"the run in {path} is complete. Evaluate it by `dmlcore eval {path}`.")
    if checkpoint == "last" and not checkpoints.path_of(folder.checkpoints, checkpoint).exists():
        return config, folder, None  # it was interrupted before the first checkpoint
    return config, folder, checkpoints.load(folder.checkpoints, checkpoint, instead=("last", "previous"))


def _foreign(folder: RunFolder, trusts_plugins: bool) -> trust.Folder:
    return trust.Folder(folder.path, tuple(plugins.KINDS), trusts_plugins)


def _names_of_losses(config: RunConfig) -> tuple[str, ...]:
    """Names for the folder: a loss chosen by its file goes by its own name."""
    losses = config.of_kind("loss")  # none where they are still to be chosen
    names = tuple(table if plugins.plugin_files.is_reference(loss.name) else loss.name for table, loss in losses.items())
    return names or config.settings.losses.names


def _train(
    config: RunConfig,
    folder: RunFolder,
    loggers: list[Logger],
    state: dict[str, Any] | None,
    recorded: RecordedSplit | None,
) -> dict[str, Any]:
    def note(text: str) -> None:
        for logger in loggers:
            logger.note(text)

    if config.settings.losses.is_automatic:
        recorded = _split_of_search(config, folder)
        config = choose_members(config, folder, functools.partial(validation_score, recorded=recorded), note)
    elif state is not None and recorded is None:
        note(NO_SPLIT.format(folder=folder.path))
    run = Run(config, folder, recorded)
    plugins.plugin_files.remember(run.config.toml())
    return Training(run, loggers, state).run_all()


def _split_of_search(config: RunConfig, folder: RunFolder) -> RecordedSplit:
    """One split for all trials and the run, also where the data grow while the search is interrupted."""
    if not (folder.split.exists() and (folder.path / SEARCH).exists()):
        splits = open_splits(config)
        assert splits.record is not None
        make_folder(folder.path)
        write_atomically(folder.split, splits.record())
    return RecordedSplit.read(folder.split)


def validation_score(config: RunConfig, folder: RunFolder, recorded: RecordedSplit | None = None) -> float:
    """Train and return the best MAP@R of the validation classes; test classes stay unseen."""
    training = Training(Run(config, folder, recorded), [], None)
    training.train_only()
    return training.run.best.score
