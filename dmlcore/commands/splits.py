"""`dmlcore splits` and its sub-commands: ood, import, show. `protocols` and `data` do the work."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import TRUST
from dmlcore.config import build_options
from dmlcore.errors import ConfigError
from dmlcore.files import check_new, expanded, make_folder, write_atomically
from dmlcore.flags import COMMON, command, flag, new_app, settings_flags, typed_values
from dmlcore.hookspecs import hookimpl
from dmlcore.protocols.shift.options import BuildOptions
from dmlcore.reports import pictures
from dmlcore.training.components import model_component

if TYPE_CHECKING:
    from dmlcore.data.split_files import SplitFile

MANDATORY = inspect.Parameter.empty
WRITING = [
    flag("data", str, "The data: a data set's name or a path.", MANDATORY),
    flag("out", Path, "The .json file to write; a picture is put beside it.", MANDATORY),
    flag("overwrite", bool, "Replace the file if it exists.", False),
]


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    text = "Divisions of the classes into training and test, from easy to hard: build, import, show them."
    splits = new_app("splits", text)
    data_flags, model_flags = line.add_data("splits"), _add_trunk(line)
    _add_building(splits, data_flags, model_flags)
    _add_importing(splits, data_flags)
    file = flag("file", Path, "A file of splits.", is_positional=True)
    splits.command(command(_show, [file, *COMMON], "Show the splits of a file as a table."), name="show")
    app.command(splits, name="splits")


def _add_trunk(line: CommandLine) -> list[inspect.Parameter]:
    """Flags of the trunk that `--model` names; none for the data as they are, for the folder of a run, and without a name.

    Raises:
        ConfigError: no such trunk.
    """
    model = line.values_of("model").get("model") if line.command == "splits" else None
    if model is None or model == "features" or expanded(model).is_dir():
        return []
    trunk = model_component(model)
    return line.add(trunk) if trunk.option_names() else []


def _add_building(splits: App, data_flags: list[inspect.Parameter], model_flags: list[inspect.Parameter]) -> None:
    def build(
        *, data: str, out: Path, overwrite: bool, trust_plugins: bool, settings: Any, json: bool, debug: bool, **tables: Any
    ) -> int:
        from dmlcore.protocols.shift.building import build_splits

        check_new(out, [".json"], "out", overwrite=overwrite)
        file, notes = build_splits(
            data,
            _options(data_flags, tables),
            _settings(typed_values(settings)),
            model_options=_options(model_flags, tables),
            trusts_plugins=trust_plugins,
            tell=console.say,
        )
        return _write(file, out, notes, json)

    flags = [*WRITING, TRUST, settings_flags(BuildOptions), *data_flags, *model_flags, *COMMON]
    text = "Build splits of growing shift (ooDML): swap classes between the sides, then leave classes out."
    splits.command(command(build, flags, text), name="ood")


def _add_importing(splits: App, data_flags: list[inspect.Parameter]) -> None:
    def import_file(
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

        check_new(out, [".json"], "out", overwrite=overwrite)
        options = _options(data_flags, tables)
        splits_file, notes = import_published(file, data, options, allows_missing=allow_missing, default=default)
        return _write(splits_file, out, notes, json)

    flags = [
        flag("file", Path, "A published file of splits (a pickle; none of its code is run).", is_positional=True),
        *WRITING,
        flag("allow_missing", bool, "Leave out classes and images that the data lack, and say how many.", False),
        flag("default", str | None, "Id of the default split (default: the one of the first half of the classes)."),
        *data_flags,
        *COMMON,
    ]
    text = "Import published splits and match their classes and images to data."
    splits.command(command(import_file, flags, text), name="import")


def _show(file: Path, *, json: bool, debug: bool) -> int:
    from dmlcore.data.split_files import SplitFile

    splits = SplitFile.read(file)
    console.show_json({"file": str(file), **_summary(splits)}) if json else show_splits(splits)
    return 0


def show_splits(file: SplitFile) -> None:
    """The splits of a file, a line each, from easy to hard."""
    rows = []
    for split in file.splits:
        mark = " (default)" if split.id == file.default and split.id != "default" else ""
        counts = (split.swapped, split.removed, len(split.train_part), len(split.validation_part), len(split.test))
        episodes = ", ".join(f"{len(drawn)} x {shots}" for shots, drawn in split.episodes.items()) or "-"
        rows.append((split.id + mark, f"{split.fid:.4g}", *(f"{count:,}" for count in counts), episodes))
    columns = ["split", "FID", "swapped", "removed", "trained on", "validation", "test", "episodes of shots"]
    console.show_table(columns, rows, numbers=True)
    console.show(f"Splits of the classes of {file.data}; swapped and removed: classes of each side, against the default split.")


def _settings(values: dict[str, Any]) -> BuildOptions:
    try:
        return build_options(BuildOptions, values, "settings")
    except ConfigError as error:
        raise type(error)(str(error).removeprefix("settings: ").removeprefix("settings.")) from None


def _options(flags: list[inspect.Parameter], tables: dict[str, Any]) -> dict[str, Any]:
    return {name: value for flag in flags for name, value in typed_values(tables[flag.name]).items() if flag.name in tables}


def _write(file: SplitFile, out: Path, notes: list[str], json: bool) -> int:
    from dmlcore.protocols.shift.progress import draw_progress

    for note in notes:
        console.say(note)
    make_folder(out.parent)
    write_atomically(out, file.to_json())
    picture = draw_progress(file, out.with_suffix(".svg")) if pictures.can_draw() else None
    if json:
        console.show_json({"file": str(out), "picture": picture, **_summary(file), "notes": notes})
        return 0
    show_splits(file)
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
                "episodes": {shots: len(drawn) for shots, drawn in split.episodes.items()},
            }
            for split in file.splits
        ],
        "made_by": file.made_by,
    }
