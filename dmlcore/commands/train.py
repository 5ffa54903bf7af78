"""`dmlcore train`: train an embedding, evaluate it on classes it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console, launch
from dmlcore.commands.line import CommandLine
from dmlcore.commands.progress import ProgressLogger
from dmlcore.commands.results import show_embeddings, show_further, show_metrics
from dmlcore.commands.trained import TRUST
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag, parameter_name, run_settings_flags, typed_values
from dmlcore.hookspecs import hookimpl
from dmlcore.training.components import CHOOSING, choose
from dmlcore.training.sources import SPEAKING, Source, with_implied

TEXT = "Train an embedding and evaluate it on classes it has not seen."
MORE = "Options of chosen losses, model and data are shown too: `dmlcore train --plugins ms,triplet --help`."


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    files = choose_components(line) if line.command == "train" else []

    def train(
        *,
        settings: Any,
        config: str | None,
        out: Path | None,
        resume: Path | None,
        checkpoint: str,
        trust_plugins: bool,
        seeds: str | None,
        folds: int | None,
        processes: int,
        max_restarts: int,
        json: bool,
        debug: bool,
        **tables: Any,
    ) -> int:
        options = {table: typed_values(tables[parameter_name(table)]) for table in line.components if _has_flags(line, table)}
        typed = Source("", typed_values(settings), {table: values for table, values in options.items() if values})
        if launch.place().size > 1 and (seeds is not None or folds is not None or processes != 1):
            raise ConfigError("--seeds, --folds and --processes start processes, but this is one of several already")
        if folds is not None and resume is not None:
            raise ConfigError("--folds cannot be given with --resume: the same command with --out goes on")
        if seeds is not None and (resume is not None or "seed" in typed.values):
            raise ConfigError(f"--seeds cannot be given with --{'resume' if resume is not None else 'seed'}")
        if folds is not None:
            return _crossed([*files, typed], folds, seeds, processes, out, json)
        if seeds is not None:
            return _repeated([*files, typed], seeds, processes, out, json)
        if processes != 1 or max_restarts:
            check_range("processes", processes, least=1)
            check_range("max_restarts", max_restarts, least=0)
            if max_restarts and out is None and resume is None:
                raise ConfigError("--max-restarts needs --out, the folder in which the run goes on")
            if resume is None:
                _check([*files, typed], out)
            return launch.start(processes, launch.words_of_a_process(line.words), max_restarts, console.fail)
        if resume is not None:
            _refuse_beside_resume(resume, [("config", config), ("out", out)], typed)
            result = _resumed(resume, checkpoint, trust_plugins, typed.values)
        elif trust_plugins:
            raise ConfigError("--trust-plugins is for --resume; files that you name yourself are run anyway")
        else:
            result = _trained([*files, typed], out)
        if launch.place().rank == 0:
            console.show_json(result) if json else show_result(result)
        return 0

    flags = [
        run_settings_flags(),
        *line.option_flags(),
        flag("config", str | None, "TOML file with settings and options; flags win over it."),
        flag("out", Path | None, "Folder of the run (default: `runs/` and the date, the time and the losses)."),
        flag("resume", Path | None, "Continue the run in this folder exactly."),
        flag("checkpoint", str, "Checkpoint to resume from: `last` or `previous`.", "last"),
        TRUST,
        flag("seeds", str | None, "Seeds such as 0-4: a run with each, and means with their intervals. --out goes on."),
        flag(
            "folds",
            int | None,
            "Folds of the training and validation classes: a run for each, validated on it, and their embeddings side by side."
            " --out goes on.",
        ),
        flag("processes", int, "Processes that train together, on this machine. With --seeds and --folds: runs at a time.", 1),
        flag("max_restarts", int, "With --processes: how often all begin again at the last checkpoint when one dies.", 0),
        *COMMON,
    ]
    app.command(command(train, flags, TEXT + ("" if line.components else f"\n\n{MORE}")), name="train")


def choose_components(line: CommandLine) -> list[Source]:
    """Take in what the line chooses, by itself and by a configuration file, whose source is returned."""
    values = line.values_of(*CHOOSING, *SPEAKING, "config", "resume")
    files = [Source.read(values["config"])] if "config" in values else []
    # The plain help and a resumed run have nothing to choose.
    if "resume" not in values and (values or not line.wants_help):
        flags = Source("", {name: value for name, value in values.items() if name in (*CHOOSING, *SPEAKING)}, {})
        _, line.components = choose(with_implied([*files, flags]))
    return files


def _check(sources: list[Source], out: Path | None) -> None:
    """Refuse here, in one line, what every process would refuse."""
    from dmlcore.training import RunConfig
    from dmlcore.training.folder import RunFolder

    config = RunConfig.resolve(sources)
    RunFolder.choose(out, config.settings.losses.names)


def _has_flags(line: CommandLine, table: str) -> bool:
    return bool(line.components[table].option_names())


def _refuse_beside_resume(resume: Path, flags: list[tuple[str, Any]], typed: Source) -> None:
    from dmlcore.training.changes import CHANGEABLE

    extra = [name for name, value in flags if value is not None] + [key for key in typed.values if key not in CHANGEABLE]
    if extra:
        free = ", ".join(f"--{key.replace('_', '-')}" for key in CHANGEABLE)
        raise ConfigError(
            f"--{extra[0].replace('_', '-')} cannot be given with --resume: a resumed run takes"
            f" everything from {resume / 'config.toml'}, but for {free}"
        )


def _resumed(folder: Path, checkpoint: str, trusts_plugins: bool, changes: dict[str, Any]) -> dict[str, Any]:
    from dmlcore.training import train

    return train(resume=folder, checkpoint=checkpoint, trusts_plugins=trusts_plugins, loggers=[ProgressLogger()], **changes)


def _trained(sources: list[Source], out: Path | None) -> dict[str, Any]:
    from dmlcore.training import RunConfig, train

    return train(RunConfig.resolve(sources), out=out, loggers=[ProgressLogger()])


def _repeated(sources: list[Source], seeds: str, processes: int, out: Path | None, json: bool) -> int:
    from dmlcore.protocols import repeats
    from dmlcore.training import RunConfig
    from dmlcore.training.folder import default_folder

    config = RunConfig.resolve(sources)
    numbers = repeats.seeds_of(seeds)
    folder = out or default_folder(config.settings.losses.names)
    summary = repeats.run(config, numbers, folder, processes=processes, tell=console.say)
    console.show_json(summary) if json else show_summary(summary)
    return 0


def _crossed(sources: list[Source], folds: int, seeds: str | None, processes: int, out: Path | None, json: bool) -> int:
    from dmlcore.protocols import crossing, repeats
    from dmlcore.training import RunConfig
    from dmlcore.training.folder import default_folder

    config = RunConfig.resolve(sources)
    numbers = [config.settings.run.seed] if seeds is None else repeats.seeds_of(seeds)
    folder = out or default_folder(config.settings.losses.names)
    summary = crossing.run(config, folds, numbers, folder, processes=processes, tell=console.say)
    console.show_json(summary) if json else show_folds(summary)
    return 0


def show_folds(summary: dict[str, Any]) -> None:
    """Means over folds, the embeddings of all folds side by side, and their intervals."""
    several = len(summary["seeds"]) > 1
    rows = _rows_of_means(summary) + [
        _row_of_means(f"{part}, {summary['folds']} models concatenated", means)
        for part, means in summary["concatenated"].items()
    ]
    what = f"{len(summary['seeds'])} seeds of {summary['folds']} folds" if several else f"{summary['folds']} folds"
    console.show_table([f"mean of {what}, 95 %", *_LABELS], rows, numbers=True)
    console.show(f"Concatenated embeddings have length {summary['embedding_dim']}. Runs: {summary['folder']}/seed-N/fold-M")


def show_summary(summary: dict[str, Any]) -> None:
    """Means over seeds with their intervals, and how sure the difference from each baseline is."""
    console.show_table([f"mean of {len(summary['seeds'])} seeds, 95 %", *_LABELS], _rows_of_means(summary), numbers=True)
    console.show(f"Each seed draws its own split. Runs: {summary['folder']}/seed-N")


_LABELS = {"R@1": "recall@1", "MAP@R": "map@r"}


def _rows_of_means(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for part, means in summary["metrics"].items():
        rows.append(_row_of_means(part, means))
        rows += [_row_of_means(f"  {name}", parts.get(part, {})) for name, parts in summary["baselines"].items()]
        rows += [_row_of_means(f"  better than {name} by", parts.get(part, {})) for name, parts in summary["gains"].items()]
    return rows


def _row_of_means(label: str, means: dict[str, list[Any]]) -> tuple[str, ...]:
    return (label, *(_mean_and_half(means.get(measure)) for measure in _LABELS.values()))


def _mean_and_half(pair: list[Any] | None) -> str:
    if pair is None:
        return "-"
    return f"{pair[0]:.3f}" if pair[1] is None else f"{pair[0]:.3f} ± {pair[1]:.3f}"


def show_result(result: dict[str, Any]) -> None:
    """How a finished run ends: the table, where everything lies, and what to do next."""
    from dmlcore.training.folder import REPORT

    show_metrics(result["metrics"], result["baselines"], "trained, step " + str(result["chosen_step"]))
    show_further(result["metrics"], result["baselines"])
    show_embeddings(result.get("embeddings", {}))
    if result["chosen_step"] == 0:
        console.show_sentences(
            "Training did not improve on where it began: train longer, or with another learning rate or other losses."
        )
    for sentence in result["advice"]:
        console.show_sentences(sentence)
    console.show_sentences(
        f"{result['wall_seconds']:.0f} s. The checkpoint was chosen by {result['chosen_by'].replace('map@r', 'MAP@R')}; "
        "test classes were used once, here."
    )
    console.show(f"Results and checkpoints: {result['run']}")
    page = Path(result["run"]) / REPORT
    if page.exists():
        console.show(f"Look at it: {page}")
    console.show(f"Use it by: dmlcore embed {result['run']} --data DATA --out embeddings.npz")
