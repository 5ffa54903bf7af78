"""Starting a run, or resuming one: what `dmlcore train` and `dmlcore.training.train` do."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmlcore import launch, plugins, trust
from dmlcore.config import seconds_of
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError, TrainingError, of_all
from dmlcore.files import make_folder, remove, write_atomically
from dmlcore.training import checkpoints
from dmlcore.training.agreement import check_run
from dmlcore.training.building import build_components, open_splits
from dmlcore.training.changes import CHANGEABLE, check_unchanged
from dmlcore.training.configuration import RunConfig
from dmlcore.training.folder import NO_SPLIT, RunFolder
from dmlcore.training.loggers import Logger
from dmlcore.training.loop import Training
from dmlcore.training.members import SEARCH, choose_members
from dmlcore.training.memory_needed import bytes_needed
from dmlcore.training.objects import Objects, check_objects, parted
from dmlcore.training.processes import Processes, folder_for, together
from dmlcore.training.race import check_is_no_race, race, racers_of, races
from dmlcore.training.run import Run
from dmlcore.training.sources import Source


def train(
    config: RunConfig | None = None,
    *,
    data: Any = None,
    model: Any = None,
    losses: Any = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    checkpoint: str = "last",
    trusts_plugins: bool = False,
    recorded: RecordedSplit | None = None,
    loggers: Sequence[Logger] = (),
    **values: Any,
) -> dict[str, Any]:
    """Train and evaluate, as `dmlcore train` does.

    Args:
        config: what to do; or give settings and options by keyword: `train(plugins="ms", steps=100, ms={"alpha": 4})`.
        data: a name, a path, or the data themselves, as `dmlcore.data.open_data` takes them: arrays or tensors (x, y), a torch
            `Dataset` of (sample, label), a `DataLoader`, a data set of Hugging Face.
        model: instead of a name, a `torch.nn.Module` as the trunk: samples to features `[B, F]`. It stays as it is; a copy is
            trained, with an embedding head behind it, or as it is with `head="none"`.
        losses: names, dmlcore losses, and modules or functions of embeddings and labels: one, or a list.
        out: folder of the run; None gives `runs/<date-time>-<losses>`.
        resume: folder of a run to continue exactly; everything but `CHANGEABLE` comes from its `config.toml`. What was given as
            an object must be given again.
        checkpoint: the checkpoint to continue from: `last`, which is the newest that is intact, or `previous`.
        trusts_plugins: with `resume`: run the files of code that the folder's `config.toml` names, whoever made it.
        recorded: which samples of the data are in which part, instead of what the data or the seed say. The run keeps it.
        loggers: receivers of what happens, beside those the settings name.
        values: settings and options, instead of `config`.

    Returns:
        What `result.json` holds, with `run`, the folder. Of several processes the first one evaluates, and the others return
        the folder alone.

    Raises:
        ConfigError: settings, options or data that cannot be used, or a folder that holds another run.
        TrainingError: a loss or gradient that is not finite, a full disk, a damaged checkpoint.
        PluginError: a plugin that breaks its contract.
        Interrupted: a KeyboardInterrupt, after a checkpoint was saved; its text says how to continue. Also by `stop_after`.
    """
    if isinstance(loggers, str):
        raise ConfigError(
            f"loggers takes Logger objects, got '{loggers}'; loggers by name are a setting: RunConfig.create(loggers=...)"
        )
    if resume is not None:
        if config is not None or out is not None or recorded is not None:
            raise ConfigError("a resumed run takes everything from its folder; give no config, out or recorded beside resume")
        named, objects = parted(data, model, losses, {})
        given = {"data": objects.data, "model": objects.model, "plugins": objects.losses or None}
        values |= {key: named[key] for key, value in given.items() if key in named and value is None}
        return _resume(resume, checkpoint, trusts_plugins, loggers, values, objects)
    if trusts_plugins:
        raise ConfigError("trusts_plugins is for resume; files that you name yourself are run anyway")
    if config is not None and (values or any(value is not None for value in (data, model, losses))):
        raise ConfigError("a RunConfig says everything; give no settings, data, model or losses beside it")
    if config is None:
        values, objects = parted(data, model, losses, values)
        config = RunConfig.create(**values).with_objects(objects)
    with together(config.settings.run) as processes:
        # of several machines each counts for itself how often torchrun has started the same command again
        is_again = processes is not None and processes.highest(launch.restarts())[0] > 0
        if processes is not None and is_again and processes.same(out is not None and RunFolder(Path(out)).is_begun):
            assert out is not None
            return _resume(out, checkpoint, trusts_plugins, loggers, {}, config.objects, processes)
        folder = folder_for(processes, functools.partial(RunFolder.choose, out, names_of_losses(config)))
        with plugins.blaming():
            return _train(config, folder, _listeners(config, loggers, processes), None, recorded, processes)


def _listeners(config: RunConfig, loggers: Sequence[Logger], processes: Processes | None) -> list[Logger]:
    """The loggers of a run: none in a process for which another speaks."""
    speaks = processes is None or processes.is_first
    return [*build_components(config, "logger"), *loggers] if speaks else []


def _resume(
    path: str | Path,
    checkpoint: str,
    trusts_plugins: bool,
    loggers: Sequence[Logger],
    values: dict[str, Any],
    objects: Objects,
    processes: Processes | None = None,
) -> dict[str, Any]:
    if checkpoint not in ("last", "previous"):
        raise ConfigError(f"checkpoint is '{checkpoint}', but a run continues from last or previous; best has no optimiser")
    fixed = [key for key in values if key not in CHANGEABLE]
    if fixed:
        raise ConfigError(
            f"{fixed[0]} cannot be changed in a resumed run, which takes everything but {', '.join(CHANGEABLE)} from"
            f" {path}/config.toml. Start a new run."
        )
    check_is_no_race(RunFolder(Path(path)))
    folder = RunFolder.open(path)
    foreign = trust.Folder(folder.path, tuple(plugins.KINDS), trusts_plugins)
    with trust.reading(foreign):
        config = _changed(folder, values).with_objects(objects)
    check_objects(objects, config.names(), str(path))
    if folder.result.exists() and not {"steps", "epochs", "patience"} & values.keys():
        raise ConfigError(
            f"the run in {path} is complete. Evaluate it by `dmlcore eval {path}`, or train on with more --steps."
        )
    # What a resumed run builds comes from its folder still, such as a miner that is named in an option.
    with contextlib.ExitStack() as stack:
        stack.enter_context(plugins.blaming())
        stack.enter_context(trust.reading(foreign))
        if processes is None:
            processes = stack.enter_context(together(config.settings.run))
        folder = folder_for(processes, lambda: folder)
        listeners = _listeners(config, loggers, processes)

        def note(text: str) -> None:
            for logger in listeners:
                logger.note(text)

        folder.lock(note)
        try:
            state = _state_of(folder, checkpoint, note)
            if state is not None:
                check_unchanged(folder, state["config"])
            recorded = RecordedSplit.read(folder.split) if folder.split.exists() else None
            return _train(config, folder, listeners, state, recorded, processes)
        finally:
            folder.unlock()


def _changed(folder: RunFolder, values: dict[str, Any]) -> RunConfig:
    """The configuration of a run with some settings given anew."""
    source = Source.read_run(folder.config)
    if values.get("epochs") is not None:
        source.values.pop("steps", None)
    return RunConfig.resolve([source, Source.of(values)] if values else [source])


def _state_of(folder: RunFolder, checkpoint: str, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The checkpoint to continue from. None: the run was interrupted before the first one."""
    if checkpoint != "last":
        return checkpoints.load(folder.checkpoints, checkpoint, instead=("last", "previous"))
    state = checkpoints.load_newest(folder.checkpoints, note)
    steps = max((record.get("step", 0) for record in folder.records()), default=0)
    if state is None and steps:
        raise TrainingError(
            f"{folder.metrics} has {steps} steps, but {folder.checkpoints} has no checkpoint to continue from. Bring them back,"
            f" or start again in another folder."
        )
    return state


def names_of_losses(config: RunConfig) -> tuple[str, ...]:
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
    processes: Processes | None = None,
) -> dict[str, Any]:
    limit = config.settings.run.stop_after
    deadline = None if limit is None else time.monotonic() + seconds_of(limit, "stop_after")

    def note(text: str) -> None:
        for logger in loggers:
            logger.note(text)

    if config.settings.losses.is_automatic:
        if recorded is not None:
            raise ConfigError("plugins = auto draws its own split; name the losses beside a split")
        if processes is not None:
            raise of_all(ConfigError("losses are chosen by one process; name them, or let one process choose them first"))
        folder.lock(note)
        recorded = _split_of_search(config, folder)
        score = functools.partial(validation_score, recorded=recorded, deadline=deadline)
        config = choose_members(config, folder, score, note)
    elif state is not None and recorded is None:
        note(NO_SPLIT.format(folder=folder.path))
    run = _built(config, folder, recorded, state, processes)
    if state is not None and run.steps < state["step"]:
        raise ConfigError(f"the run in {folder.path} has done {state['step']} steps already, more than {run.steps}")
    if state is None and config.settings.may_race and races(run, config):
        racers = racers_of(run, config)
        folder.lock(note)
        score = functools.partial(validation_score, processes=processes)
        state, recorded = race(racers, run, score, note, recorded)
        run = _built(RunConfig.read(folder.config).with_objects(config.objects), folder, recorded, state, processes)
    _divide(run)
    plugins.plugin_files.remember(run.config.toml())
    training = Training(run, loggers, state, deadline)
    for path in (folder.result, folder.report) if run.writes else ():  # of fewer steps
        remove(path)
    if state is not None and run.config.as_dict() != state["config"]:
        folder.write_config(run.config.toml())
    return training.run_all()


def _built(
    config: RunConfig,
    folder: RunFolder,
    recorded: RecordedSplit | None,
    state: dict[str, Any] | None,
    processes: Processes | None,
) -> Run:
    """A run before its first step, or one that goes on from the state of a checkpoint. All processes have the same."""
    with contextlib.nullcontext() if processes is None else processes.in_turn():
        run = Run(config, folder, recorded, is_resumed=state is not None, processes=processes)
    if processes is not None:
        check_run(processes, run, "" if state is None else f"a checkpoint of step {state['step']}")
    return run


def _divide(run: Run) -> None:
    """Let the processes divide the model of a run that begins now, where they are to."""
    if run.divides_model:
        run.bytes_of_a_step = bytes_needed(run, run.batch_size)  # later no process could try that alone
        run.divide_model()


def _split_of_search(config: RunConfig, folder: RunFolder) -> RecordedSplit:
    """One split for all trials and the run, also where the data grow while the search is interrupted."""
    if not (folder.split.exists() and (folder.path / SEARCH).exists()):
        splits = open_splits(config)
        assert splits.record is not None
        make_folder(folder.path)
        write_atomically(folder.split, splits.record())
    return RecordedSplit.read(folder.split)


def validation_score(
    config: RunConfig,
    folder: RunFolder,
    recorded: RecordedSplit | None = None,
    deadline: float | None = None,
    *,
    loggers: Sequence[Logger] = (),
    goes_on: Callable[[Run, float], bool] = lambda run, score: True,
    state: dict[str, Any] | None = None,
    processes: Processes | None = None,
) -> float:
    """Train and return the best MAP@R of the validation classes; test classes stay unseen.

    Args:
        config: of the run.
        folder: of the run.
        recorded: its split; None: it draws one.
        deadline: time of `time.monotonic` at which the run saves and ends, or None.
        loggers: receivers of what happens.
        goes_on: asked with the MAP@R of each evaluation that follows a step; False ends the training.
        state: of a checkpoint in the folder to go on from; None: it begins.
        processes: that train together; None: this one is alone.
    """
    run = _built(config, folder, recorded, state, processes)
    _divide(run)
    training = Training(run, loggers, state, deadline, goes_on)
    training.train_only()
    return run.best.score
