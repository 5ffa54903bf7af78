"""`dmlcore ood run`: every configuration on every split with every seed. What a cell does stands in `cell.py`."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmlcore.config import check_range, unique_names
from dmlcore.data import ClassSplit, SplitFile
from dmlcore.errors import ConfigError
from dmlcore.files import plain
from dmlcore.protocols.cells import Cell, run_cells
from dmlcore.protocols.crossing import check_folds
from dmlcore.protocols.shift.adapting import Adaptation
from dmlcore.protocols.shift.cell import Places, key_of, train_and_measure
from dmlcore.protocols.shift.episodes import can_be_learnt
from dmlcore.protocols.tuning.folds import least_classes
from dmlcore.training.components import data_component
from dmlcore.training.configuration import RunConfig
from dmlcore.training.sources import Source

OWN = ("data", "splits", "split", "seed")  # settings that the protocol gives
MODELS = "models"


def plan(
    splits: str | Path,
    configs: Sequence[str | Path],
    *,
    data: str | None = None,
    seeds: int = 3,
    adaptation: Adaptation | None = None,
    only: Sequence[str] = (),
    validation: str | None = None,
    folds: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[list[Cell], Places]:
    """The cells of a comparison, split by split so that unfinished ones compare as many configurations as possible.

    Args:
        splits: a file of splits.
        configs: TOML files of `dmlcore train`, each a row of the report under the file's name. What they say of the data, the
            split and the seed is replaced by what the protocol says, and a note names it.
        data: in place of what the file of splits names.
        seeds: 0 .. seeds - 1, of weights and batches.
        adaptation: None: no few-shot adaptation.
        only: ids of splits. Empty: all.
        validation: what chooses the checkpoint, in place of what the configurations say.
        folds: k: a cell is k models, each validated on another part of the training classes, as `crossing.run` does. None: one.
        tell: receives notes.

    Raises:
        ConfigError: a setting that cannot be used; configurations of one name; splits without the episodes that are asked for.
    """
    check_range("seeds", seeds, least=1)
    file = SplitFile.read(splits)
    selected = [file.find(identity) for identity in only] or list(file.splits)
    if not configs:
        raise ConfigError("there is no configuration; give TOML files of `dmlcore train` by --config A.toml,B.toml")
    names = [Path(config).stem for config in configs]
    if unique_names(names) != names:
        raise ConfigError(f"two configurations are called '{next(n for n in names if names.count(n) > 1)}'; rename a file")
    if data is None:
        file.check_data()
    where = data or file.data
    replaced = {} if validation is None else {"validation": validation}
    read = [_read(config, where, {} if data else file.options, replaced, tell) for config in configs]
    if folds is not None:
        for config in read:
            check_folds(folds, RunConfig.create(**config, data=where))
        _check_classes(selected, folds)
    _check_episodes(selected, adaptation)
    adapted = None if adaptation is None else plain(asdict(adaptation))
    cells = []
    for split in selected:
        about = _about(split)
        for seed in range(seeds):
            for name, config in zip(names, read, strict=True):
                settings = {"name": name, "config": config, "split": about, "seed": seed, "adaptation": adapted}
                if folds is not None:  # results of one model stay valid without the word
                    settings["folds"] = folds
                cells.append(Cell(key_of(name, split.id, seed), settings))
    if len({cell.key for cell in cells}) < len(cells):
        raise ConfigError("two splits or configurations differ only in characters that file names lack; rename one")
    return cells, Places(str(Path(splits).resolve()), where)


def _about(split: ClassSplit) -> dict[str, Any]:
    """What the settings of a cell say of its split."""
    return {"id": split.id, "fid": split.fid, "swapped": split.swapped, "removed": split.removed, "digest": _digest(split)}


def _check_classes(splits: Sequence[ClassSplit], folds: int) -> None:
    """Refuse folds for which a split has too few training classes."""
    for split in splits:
        if len(split.train) < (least := least_classes(folds)):
            raise ConfigError(
                f"split '{split.id}' has {len(split.train)} training classes, but {folds} folds need {least}. Take fewer"
                " --folds, or leave them out"
            )


def _check_episodes(splits: Sequence[ClassSplit], adaptation: Adaptation | None) -> None:
    """Refuse an adaptation to episodes that a split does not have."""
    if adaptation is None:
        return
    for split in splits:
        for shots in adaptation.shots:
            if shots not in split.episodes:
                available = ", ".join(map(str, split.episodes)) or "none"
                raise ConfigError(
                    f"split '{split.id}' has no episodes of {shots} shots; it has: {available}. Choose by --shots"
                )
            stored = len(split.episodes[shots])
            if adaptation.episodes and adaptation.episodes > stored:
                raise ConfigError(f"episodes is {adaptation.episodes}, but split '{split.id}' has {stored} of {shots} shots")
            episodes = split.episodes[shots][: adaptation.episodes]
            bare = [number for number, episode in enumerate(episodes) if not can_be_learnt(episode, 2)]
            if bare:
                raise ConfigError(
                    f"episode {bare[0] + 1} of {shots} shots of split '{split.id}' has no two classes with two support samples,"
                    f" so nothing can be learnt from it ({len(bare)} of {stored} episodes). Import the splits anew, or say"
                    " --shots 0"
                )


def run(
    cells: Sequence[Cell],
    places: Places,
    out: str | Path,
    *,
    processes: int = 1,
    keeps_models: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Run what is missing of `plan`'s cells, and return all results by key.

    Args:
        cells: of `plan`.
        places: of `plan`.
        out: folder of the results. The same command goes on with what is missing.
        processes: at a time, each with one thread.
        keeps_models: keep the run of every cell with its best checkpoint below `models`.
        tell: receives lines of progress.
    """
    check_range("processes", processes, least=1)
    out = Path(out)
    if keeps_models:
        places = Places(places.splits, places.data, str((out / MODELS).resolve()))
    results = run_cells(out, cells, functools.partial(train_and_measure, places=places), processes=processes, tell=tell)
    if keeps_models:
        without = sum(not (out / MODELS / cell.key).exists() for cell in cells)
        if without:
            tell(f"{without} cells were finished before without keeping their models; remove their files to have them again")
    return results


def _read(
    config: str | Path, data: str, options: dict[str, Any], replaced: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """A configuration without what the protocol gives, checked with it.

    Args:
        config: a TOML file.
        data: what it is trained on.
        options: of the data.
        replaced: settings in place of those of the file.
        tell: receives notes.
    """
    source = Source.read(config)
    dropped = [key for key in OWN if key in source.values]
    if dropped:
        tell(f"{config}: {', '.join(dropped)} {'is' if len(dropped) == 1 else 'are'} given by the protocol instead")
    values = {**{key: value for key, value in source.values.items() if key not in OWN}, **replaced}
    tables = dict(source.tables)
    if options:
        name = data_component(data).table
        tables[name] = {**tables.get(name, {}), **options}
    resolved = RunConfig.resolve([Source(source.label, {**values, "data": data}, tables)]).as_dict()
    return {key: value for key, value in resolved.items() if key not in OWN}


def _digest(split: ClassSplit) -> str:
    """Of everything in a split, so that results of another one are not taken for its own."""
    return hashlib.sha256(json.dumps(asdict(split), sort_keys=True).encode()).hexdigest()[:16]
