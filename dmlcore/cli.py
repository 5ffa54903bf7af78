"""The command line. Every command reads its flags here and leaves the work to the library; no other module exits.

Flags are read twice: a first look finds `--plugins`, `--model`, `--data` and `--config`, whose components then bring flags of
their own (`--ms.alpha 4`). Flags, TOML and Python share their checks and messages. torch is imported inside commands only.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnknownOptionError

import dmlcore
from dmlcore import console, plugins
from dmlcore.description import describe_system
from dmlcore.errors import ConfigError, DmlcoreError, suggestion
from dmlcore.fewshot_commands import LOOKED, chosen_components, fewshot_app
from dmlcore.flags import COMMON, command, component_flags, flag, given, parameter_name, settings_flags
from dmlcore.ood_commands import ood_app
from dmlcore.plugin_commands import plugins_app
from dmlcore.split_commands import splits_app, trunk_component
from dmlcore.training.settings import (
    CHOOSING,
    Component,
    Settings,
    Source,
    choose,
    data_component,
    not_chosen,
    with_data_of_splits,
)

TRAINED = [
    flag("checkpoint", str, "`best`, `last` or `previous`.", "best"),
    flag("device", str, "`auto`, `cpu`, `cuda` or `cuda:N`.", "auto"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words behind `dmlcore`; None takes those of the process.

    Returns:
        Exit status: 0 done, 1 failed, 2 the user's mistake, 130 interrupted.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in tokens
    try:
        with plugins.blaming():
            return _Commands(tokens).run()
    except KeyboardInterrupt as interrupt:
        console.fail(str(interrupt) or "interrupted", debug=debug)
        return 130
    except DmlcoreError as error:
        console.fail(error, debug=debug)
        return error.exit_status
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        console.give_up_stdout()
        return 1
    except Exception as error:
        console.fail(f"{type(error).__name__}: {error}. `--debug` shows where.", debug=debug)
        return 1


def script() -> None:
    """`main` as a process: exits with its status."""
    sys.exit(main())


class _Commands:
    """The commands for one command line, with the flags of what it chooses."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.word = next((token for token in tokens if not token.startswith("-")), "")
        self.wants_help = not {"--help", "-h"}.isdisjoint(tokens)
        self.settings = Settings()
        self.chosen: dict[str, Component] = {}
        text = "Deep metric learning with many losses at once. Installed plugins may add commands."
        self.app = App(
            name="dmlcore",
            version=dmlcore.__version__,
            help=text,
            result_action="return_value",
            suppress_keyboard_interrupt=False,
        )

    def run(self) -> int:
        makers = {
            "train": self._train,
            "eval": self._eval,
            "embed": self._embed,
            "splits": self._splits,
            "ood": ood_app,
            "fewshot": self._fewshot,
            "plugins": plugins_app,
            "info": self._info,
        }
        self.app.command(self._kernels(), name="kernels")
        for name, make in makers.items():
            self.app.command(make(), name=name)
        if self.word and self.word not in {*makers, "kernels"}:
            plugins.manager().hook.dmlcore_commands(app=self.app)
        try:
            status = self.app(self.tokens, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            raise ConfigError(self._usage_error(error)) from error
        return status if isinstance(status, int) else 0

    def _usage_error(self, error: CycloptsError) -> str:
        word = error.token.keyword or error.token.value if isinstance(error, UnknownOptionError) else ""
        table, dot, option = word.partition("=")[0].removeprefix("--").partition(".")
        if dot and table in self.chosen:
            known = self.chosen[table].option_names()
            return f"{table} has no option '{option}'.{suggestion(option, known)} `dmlcore plugins {table}` lists them."
        if dot and self.chosen:
            reason = not_chosen(table, self.chosen, self.settings)
            return f"{word}: {reason.replace('plugins', 'losses') if self.word == 'fewshot' else reason}"
        error.verbose = False
        where = " ".join(["dmlcore", *(error.command_chain or [])])
        return f"{' '.join(str(error).split()).rstrip('.')}. See `{where} --help`."

    def _look(self, *names: str) -> dict[str, str]:
        """The first look: values of some flags, wherever they stand."""
        found = {}
        for index, token in enumerate(self.tokens):
            word, equals, value = token.partition("=")
            name = word.removeprefix("--").replace("-", "_")
            if word.startswith("--") and name in names:
                found[name] = value if equals else "".join(self.tokens[index + 1 : index + 2])
        return found

    def _train(self) -> Callable[..., int]:
        looked = self._look(*CHOOSING, "splits", "config", "resume") if self.word == "train" else {}
        files = [Source.read(looked["config"])] if "config" in looked else []
        if self.word == "train" and "resume" not in looked and (looked or not self.wants_help):
            flags = Source("", {name: value for name, value in looked.items() if name in (*CHOOSING, "splits")}, {})
            self.settings, self.chosen = choose(with_data_of_splits([*files, flags]))

        def train(
            *,
            settings: Any,
            config: str | None,
            out: Path | None,
            resume: Path | None,
            checkpoint: str,
            json: bool,
            debug: bool,
            **tables: Any,
        ) -> int:
            from dmlcore.training import RunConfig
            from dmlcore.training import train as start

            values = {table: given(tables[name]) for table in self.chosen if (name := parameter_name(table)) in tables}
            typed = Source("", given(settings), {table: options for table, options in values.items() if options})
            progress = console.ProgressLogger()
            if resume is not None:
                extra = [name for name, value in (("config", config), ("out", out)) if value is not None] + list(typed.values)
                if extra:
                    raise ConfigError(
                        f"--{extra[0].replace('_', '-')} cannot be given with --resume: a resumed run takes"
                        f" everything from {resume / 'config.toml'}"
                    )
                result = start(resume=resume, checkpoint=checkpoint, loggers=[progress])
            else:
                result = start(RunConfig.resolve([*files, typed]), out=out, loggers=[progress])
            console.show_json(result) if json else console.show_result(result)
            return 0

        more = "Options of chosen losses, model and data are shown too: `dmlcore train --plugins ms,triplet --help`."
        return command(
            train,
            [
                settings_flags(Settings),
                *(component_flags(component) for component in self.chosen.values() if component.option_names()),
                flag("config", str | None, "TOML file with settings and options; flags win over it."),
                flag("out", Path | None, "Folder of the run (default: `runs/` and the date, the time and the losses)."),
                flag("resume", Path | None, "Continue the run in this folder exactly."),
                flag("checkpoint", str, "Checkpoint to resume from: `last` or `previous`.", "last"),
                *COMMON,
            ],
            "Train an embedding and evaluate it on classes it has not seen." + ("" if self.chosen else f"\n\n{more}"),
        )

    def _data_flags(self, name: str) -> list[inspect.Parameter]:
        """Flags of the data source that `--data` names, for commands without settings of a run."""
        data = self._look("data").get("data") if self.word == name else None
        if not data:
            return []
        component = data_component(data)
        self.chosen, self.settings = {component.table: component}, dataclasses.replace(self.settings, data=data)
        return [component_flags(component)] if component.option_names() else []

    def _eval(self) -> Callable[..., int]:
        def evaluate(
            run: Path, *, data: str | None, checkpoint: str, device: str, json: bool, debug: bool, **tables: Any
        ) -> int:
            from dmlcore.training.trained import TrainedRun

            result = TrainedRun(run, checkpoint=checkpoint, device=device).evaluate(data, _data_options(tables))
            if json:
                console.show_json(result)
            else:
                for note in result["notes"]:
                    console.say(note)
                console.show_metrics(result["metrics"], result["baselines"], f"{result['data']}, step {result['step']}")
                console.show_embeddings(result.get("embeddings", {}))
            return 0

        return command(
            evaluate,
            [
                flag("run", Path, "Folder of a run.", is_positional=True),
                flag("data", str | None, "Other data; all of its classes are evaluated (default: the run's held-out classes)."),
                *self._data_flags("eval"),
                *TRAINED,
                *COMMON,
            ],
            "Evaluate a run on its held-out classes, or on other data.",
        )

    def _embed(self) -> Callable[..., int]:
        def embed(
            run: Path,
            *,
            data: str,
            out: Path,
            overwrite: bool,
            checkpoint: str,
            device: str,
            json: bool,
            debug: bool,
            **tables: Any,
        ) -> int:
            from dmlcore.training.trained import TrainedRun

            trained = TrainedRun(run, checkpoint=checkpoint, device=device)
            result = trained.embed_to(data, out, _data_options(tables), overwrite=overwrite)
            if json:
                console.show_json(result)
            else:
                count, length = result["samples"], result["embedding_dim"]
                console.show(f"{count:,} embeddings of {length} in {out} (x, y, class_name, split)")
            return 0

        return command(
            embed,
            [
                flag("run", Path, "Folder of a run.", is_positional=True),
                flag("data", str, "What to embed: a data set's name or a path.", inspect.Parameter.empty),
                flag("out", Path, "The .npz file to write.", inspect.Parameter.empty),
                flag("overwrite", bool, "Replace the file if it exists.", False),
                *self._data_flags("embed"),
                *TRAINED,
                *COMMON,
            ],
            "Write the embeddings of data as an .npz file.",
        )

    def _fewshot(self) -> App:
        self.chosen |= chosen_components(self._look(*LOOKED)) if self.word == "fewshot" else {}
        return fewshot_app(self.chosen if self.word == "fewshot" else {})

    def _splits(self) -> App:
        data_flags = self._data_flags("splits")
        trunk = trunk_component(self._look("model").get("model")) if self.word == "splits" else None
        if trunk is None or not trunk.option_names():
            return splits_app(data_flags, [])
        self.chosen, self.settings = {**self.chosen, trunk.table: trunk}, dataclasses.replace(self.settings, model=trunk.name)
        return splits_app(data_flags, [component_flags(trunk)])

    def _kernels(self) -> App:
        """The commands about functors that are compiled at run time."""

        def kept(*, json: bool, debug: bool) -> int:
            from dmlcore.kernels import kept_functors

            found = kept_functors()
            console.show_json(found) if json else console.show_kernels(found)
            return 0

        def build(names: tuple[str, ...], *, json: bool, debug: bool) -> int:
            from dmlcore.kernels import build_functors

            found = build_functors(names)
            console.show_json({"built": found}) if json else console.show_built(found)
            return 1 if any(one["error"] for one in found) else 0

        def clear(names: tuple[str, ...], *, json: bool, debug: bool) -> int:
            from dmlcore.kernels import clear_functors

            gone = clear_functors(names)
            console.show_json({"removed": gone}) if json else console.show(f"removed: {', '.join(gone) or 'nothing'}")
            return 0

        text = "Functors of plugins, compiled on first use: what is kept, compile now, remove."
        app = App(name="kernels", help=text, result_action="return_value", suppress_keyboard_interrupt=False)
        words = flag("names", tuple[str, ...], "Losses or headers (default: all).", is_positional=True).replace(default=())
        app.command(command(kept, COMMON, "List the compiled functors that are kept, and where."), name="list")
        app.command(command(build, [words, *COMMON], "Compile the functors of installed losses or of headers."), name="build")
        words = flag("names", tuple[str, ...], "Headers, without `.h` (default: all).", is_positional=True).replace(default=())
        app.command(command(clear, [words, *COMMON], "Remove compiled functors; what runs keeps its own."), name="clear")
        return app

    def _info(self) -> Callable[..., int]:
        def info(*, json: bool, debug: bool) -> int:
            facts = describe_system()
            console.show_json(facts) if json else console.show_info(facts)
            return 0

        return command(info, COMMON, "Show versions, devices and what the kernels can do here.")


def _data_options(tables: dict[str, Any]) -> dict[str, Any]:
    """Options of the one data source that `eval` and `embed` have flags for."""
    return next((given(values) for values in tables.values()), {})
