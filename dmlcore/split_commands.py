"""`dmlcore splits` and its sub-commands: ood, import, show. `protocols` and `data` do the work."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from dmlcore import console
from dmlcore.config import build_options
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag, given, settings_flags
from dmlcore.protocols.shift.options import BuildOptions
from dmlcore.training.settings import Component, model_component

if TYPE_CHECKING:
    from dmlcore.data.split_files import SplitFile

MANDATORY = inspect.Parameter.empty
WRITING = [
    flag("data", str, "The data: a data set's name or a path.", MANDATORY),
    flag("out", Path, "The .json file to write; a picture is put beside it.", MANDATORY),
    flag("overwrite", bool, "Replace the file if it exists.", False),
]


def splits_app(data_flags: list[inspect.Parameter], model_flags: list[inspect.Parameter]) -> App:
    """The command with its sub-commands.

    Args:
        data_flags: options of the data that `--data` names, none or one group.
        model_flags: options of the trunk that `--model` names, none or one group.
    """
    text = "Divisions of the classes into training and test, from easy to hard: build, import, show them."
    app = App(name="splits", help=text, result_action="return_value", suppress_keyboard_interrupt=False)

    def ood(*, data: str, out: Path, overwrite: bool, settings: Any, json: bool, debug: bool, **tables: Any) -> int:
        from dmlcore.protocols.shift.building import build_splits

        _check_out(out, overwrite)
        file, notes = build_splits(
            data,
            _options(data_flags, tables),
            _settings(given(settings)),
            model_options=_options(model_flags, tables),
            tell=console.say,
        )
        return _write(file, out, notes, json)

    app.command(
        command(
            ood,
            [*WRITING, settings_flags(BuildOptions), *data_flags, *model_flags, *COMMON],
            "Build splits of growing shift (ooDML): swap classes between the sides, then leave classes out.",
        ),
        name="ood",
    )

    def bring(
        file: Path,
        *,
        data: str,
        out: Path,
        overwrite: bool,
        allow_missing: bool,
        default: str | None,
        json: bool,
        debug: bool,
        **tables: Any,
    ) -> int:
        from dmlcore.protocols.shift.published import import_published

        _check_out(out, overwrite)
        found, notes = import_published(file, data, _options(data_flags, tables), allows_missing=allow_missing, default=default)
        return _write(found, out, notes, json)

    app.command(
        command(
            bring,
            [
                flag("file", Path, "A published file of splits (a pickle; none of its code is run).", is_positional=True),
                *WRITING,
                flag("allow_missing", bool, "Leave out classes and images that the data lack, and say how many.", False),
                flag("default", str | None, "Id of the default split (default: the one of the first half of the classes)."),
                *data_flags,
                *COMMON,
            ],
            "Import published splits and match their classes and images to data.",
        ),
        name="import",
    )

    def show(file: Path, *, json: bool, debug: bool) -> int:
        from dmlcore.data.split_files import SplitFile

        found = SplitFile.read(file)
        console.show_json({"file": str(file), **_summary(found)}) if json else console.show_splits(found)
        return 0

    app.command(
        command(
            show,
            [flag("file", Path, "A file of splits.", is_positional=True), *COMMON],
            "Show the splits of a file as a table.",
        ),
        name="show",
    )
    return app


def trunk_component(model: str | None) -> Component | None:
    """The trunk that `--model` names, or None for the data as they are, for the folder of a run, and without a name.

    Raises:
        ConfigError: no such trunk.
    """
    if model is None or model == "features" or Path(model).expanduser().is_dir():
        return None
    return model_component(model)


def _settings(values: dict[str, Any]) -> BuildOptions:
    try:
        return build_options(BuildOptions, values, "settings")
    except ConfigError as error:
        raise type(error)(str(error).removeprefix("settings: ").removeprefix("settings.")) from None


def _options(flags: list[inspect.Parameter], tables: dict[str, Any]) -> dict[str, Any]:
    return {name: value for flag in flags for name, value in given(tables[flag.name]).items() if flag.name in tables}


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != ".json":
        raise ConfigError(f"out is '{out}', but must end in .json")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; choose another --out, or replace it with --overwrite")


def _write(file: SplitFile, out: Path, notes: list[str], json: bool) -> int:
    from dmlcore.files import make_folder, write_atomically
    from dmlcore.protocols.shift.progress import draw_progress
    from dmlcore.reports import pictures

    for note in notes:
        console.say(note)
    make_folder(out.parent)
    write_atomically(out, file.to_json())
    picture = draw_progress(file, out.with_suffix(".svg")) if pictures.can_draw() else None
    if json:
        console.show_json({"file": str(out), "picture": picture, **_summary(file), "notes": notes})
        return 0
    console.show_splits(file)
    console.show(f"Splits: {out}")
    console.show(f"Picture: {picture}" if picture else pictures.HOW_TO_DRAW)
    console.show(f"Train on them by: dmlcore ood run --splits {out} --config CONFIG.toml --out FOLDER")
    return 0


def _summary(file: SplitFile) -> dict[str, Any]:
    """The splits without their names of classes and samples."""
    return {
        "data": file.data,
        "options": file.options,
        "default": file.default,
        "splits": [
            {
                "id": split.id,
                "fid": split.fid,
                "swapped": split.swapped,
                "removed": split.removed,
                "train": len(split.train),
                "train_part": len(split.train_part),
                "validation_part": len(split.validation_part),
                "test": len(split.test),
                "episodes": {shots: len(found) for shots, found in split.episodes.items()},
            }
            for split in file.splits
        ],
        "made_by": file.made_by,
    }
