"""`dmlcore tune`: search settings and options on the validation classes, at equal budgets for each set of losses."""

from __future__ import annotations

import inspect
import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import TRUST
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag, parameter_name, run_settings_flags, typed_values
from dmlcore.hookspecs import hookimpl
from dmlcore.training.components import CHOOSING, Component, choose
from dmlcore.training.sources import SPEAKING, Source, with_implied

TEXT = (
    "Search settings and options on folds of the training and validation classes, then train the best and measure it on the"
    " test classes once."
)
TABLE = "search"  # of a configuration file
DEFAULTS = {"trials": 20, "folds": 4, "pruner": "median"}
SEARCH = inspect.Parameter(
    "search",
    inspect.Parameter.KEYWORD_ONLY,
    default=[],
    annotation=Annotated[
        list[str],
        Parameter(
            help="What is searched, such as `learning_rate=1e-5..1e-2 log`, `ms.alpha=0.5..10`, `samples_per_class=2,4,8`, or a"
            " name alone for a range around its value; may be given several times (default: the learning rate, and the options"
            " that losses declare). A table [search] of --config says the same.",
            negative=(),
        ),
    ],
)


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    files, tables = _choose(line) if line.command == "tune" else ([], [])

    def tune(
        *,
        settings: Any,
        search: list[str],
        arms: str | None,
        trials: int | None,
        folds: int | None,
        pruner: str | None,
        processes: int,
        keep_open: bool,
        config: str | None,
        out: Path | None,
        resume: Path | None,
        trust_plugins: bool,
        json: bool,
        debug: bool,
        **options: Any,
    ) -> int:
        from dmlcore.protocols.tuning import running, space

        typed = Source("", typed_values(settings), _typed_options(line, options))
        shared: dict[str, Any] = {"processes": processes, "keeps_open": keep_open, "tell": console.say}
        if resume is not None:
            given = {"search": search, "arms": arms, "folds": folds, "pruner": pruner, "config": config, "out": out}
            given |= {key: value for key, value in typed.values.items() if key != "stop_after"} | typed.tables
            extra = next((key for key, value in given.items() if value not in (None, [])), None)
            if extra is not None:
                raise ConfigError(
                    f"--{extra.replace('_', '-')} cannot be given with --resume: a study takes everything from its folder, but"
                    f" for --trials, --processes, --keep-open and --stop-after"
                )
            stop_after = typed.values.get("stop_after")
            result = running.resume(resume, trials=trials, trusts_plugins=trust_plugins, stop_after=stop_after, **shared)
        else:
            if trust_plugins:
                raise ConfigError("--trust-plugins is for --resume; files that you name yourself are run anyway")
            configs = _arms([*files, typed], _arm_names(arms))
            specs = space.written(search, tables)
            given = {"trials": trials, "folds": folds, "pruner": pruner}
            values = {key: DEFAULTS[key] if value is None else value for key, value in given.items()}
            result = running.run(configs, specs, out or _default_folder(), **values, **shared)
        console.show_json(result) if json else show_study(result)
        return 0

    flags = [
        run_settings_flags(),
        *line.option_flags(),
        SEARCH,
        flag(
            "arms",
            str | None,
            "Sets of losses to compare, as `ms;proxy_anchor;ms,triplet`: each gets the same trials and"
            " steps (default: the losses of --plugins alone).",
        ),
        flag("trials", int | None, f"Trials of each arm (default: {DEFAULTS['trials']})."),
        flag(
            "folds",
            int | None,
            "Class-disjoint folds of the training and validation classes, on each of which a trial is"
            f" trained; 1: the run's own validation classes (default: {DEFAULTS['folds']}).",
        ),
        flag(
            "pruner",
            str | None,
            "What gives up trials that fall behind at their evaluations: `median`, `hyperband` or"
            f" `none` (default: {DEFAULTS['pruner']}).",
        ),
        flag("processes", int, "Trials at a time, each with one thread.", 1),
        flag("keep_open", bool, "Train and test no winners yet, so that trials can be added by --resume.", False),
        flag("config", str | None, "TOML file with settings, options and a table [search]; flags win over it."),
        flag("out", Path | None, "Folder of the study (default: `runs/tune-` and the date and the time)."),
        flag("resume", Path | None, "Go on with the study in this folder, also with more --trials."),
        TRUST,
        *COMMON,
    ]
    app.command(command(tune, flags, TEXT), name="tune")


def _choose(line: CommandLine) -> tuple[list[Source], list[dict[str, Any]]]:
    """Take in what the line chooses in all arms; the configuration file is returned in two parts, the second what it
    searches."""
    values = line.values_of(*CHOOSING, *SPEAKING, "config", "resume", "arms")
    files, tables = [], []
    if "config" in values:
        file = Source.read(values["config"])
        table = file.tables.pop(TABLE, None)
        files, tables = [file], [table] if table else []
    if "resume" not in values and (values or not line.wants_help):
        flags = {name: value for name, value in values.items() if name in (*CHOOSING, *SPEAKING)}
        for name in _arm_names(values.get("arms")):
            chosen = flags if name is None else {**flags, "plugins": name}
            line.components |= choose(with_implied([*files, Source("", chosen, {})]))[1]
    return files, tables


def _arm_names(arms: str | None) -> list[str | None]:
    """The arms that are typed; None stands for the losses of the settings."""
    if arms is None:
        return [None]
    names = [",".join(part.strip() for part in arm.split(",")) for arm in arms.split(";")]
    if not all(names):
        raise ConfigError(f"arms is '{arms}', but must be sets of losses with `;` between them, such as \"ms;ms,triplet\"")
    return list(names)


def _typed_options(line: CommandLine, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tables = {
        table: typed_values(options[parameter_name(table)])
        for table, component in line.components.items()
        if component.option_names()
    }
    return {table: values for table, values in tables.items() if values}


def _arms(sources: list[Source], names: list[str | None]) -> list[tuple[str, Any]]:
    """The configuration of each arm, with the options of what it has; what no arm has is refused."""
    from dmlcore.training import RunConfig
    from dmlcore.training.start import names_of_losses

    if names != [None] and any("plugins" in source.values for source in sources):
        raise ConfigError("plugins and arms are both given; arms says all losses")
    chosen: list[dict[str, Component]] = []
    for name in names:
        arm = [] if name is None else [Source("", {"plugins": name}, {})]
        chosen.append(choose(with_implied([*sources, *arm]))[1])
    everywhere = {table for components in chosen for table in components}
    configs = []
    for name, components in zip(names, chosen, strict=True):
        own = [
            Source(s.label, s.values, {t: v for t, v in s.tables.items() if t in components or t not in everywhere})
            for s in sources
        ]
        config = RunConfig.resolve([*own, *([] if name is None else [Source("", {"plugins": name}, {})])])
        if config.settings.losses.is_automatic:
            raise ConfigError("plugins is auto, which is a search of its own; name the losses, or several sets as --arms")
        configs.append((",".join(names_of_losses(config)), config))
    return configs


def _default_folder() -> Path:
    return Path("runs") / f"tune-{datetime.now():%Y%m%d-%H%M%S}"


def show_study(result: dict[str, Any]) -> None:
    """The arms with their scores and best settings, and the command that trains each winner."""
    rows, is_tested = [], result["is_tested"]
    for arm in result["arms"]:
        score, half = arm["validation"]
        test = arm.get("metrics", {}).get("test", {})
        best = _number(score) + ("" if half is None else f" ± {half:.3f}")
        cells = [arm["arm"], str(arm["trials"]), _number(arm["before"]), best]
        rows.append(cells + ([_number(test.get("recall@1")), _number(test.get("map@r"))] if is_tested else []))
    columns = ["arm", "trials", "MAP@R before", "best MAP@R", *(["test R@1", "test MAP@R"] if is_tested else [])]
    console.show_table(columns, rows, numbers=True)
    for arm in result["arms"]:
        values = "  ".join(f"{name} {_value(value)}" for name, value in arm["best"]["values"].items())
        console.show_sentences(f"{arm['arm']}: {values}")
    where = f"means over {result['folds']} class-disjoint folds" if result["folds"] > 1 else "of the validation classes"
    sentence = f"MAP@R before and best are {where}"
    if is_tested:
        console.show_sentences(f"{sentence}. The winner of each arm was measured on the test classes once, here.")
    else:
        console.show_sentences(
            f"{sentence}. No test class was looked at; train and test the winners by"
            f" `dmlcore tune --resume {shlex.quote(result['folder'])}`."
        )
    for arm in result["arms"]:
        for sentence in arm.get("advice", []):
            console.show_sentences(f"{arm['arm']}: {sentence}")
    console.show(f"Look at it: {result['report']}")
    for arm in result["arms"]:
        console.show(f"Train the winner{'' if len(rows) == 1 else ' of ' + arm['arm']} by: {arm['command']}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
