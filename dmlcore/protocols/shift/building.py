"""Building splits of growing shift out of any labelled data: the default split, the way from it, the choice, the episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dmlcore.data import DataSource, Table, find_source
from dmlcore.data.split_files import ClassSplit, Episode, SplitFile
from dmlcore.errors import ConfigError, DataError, suggestion
from dmlcore.files import expanded
from dmlcore.plugin_files import absolute
from dmlcore.protocols.shift.class_features import AS_THEY_ARE, class_means, is_run
from dmlcore.protocols.shift.episodes import supports_by_class, usable_shots
from dmlcore.protocols.shift.options import BuildOptions
from dmlcore.protocols.shift.split_choice import by_spacing, by_targets, evenly_spaced, identities
from dmlcore.protocols.shift.swapping import (
    LEAST_SIDE,
    ByGroups,
    ByMeans,
    Division,
    Driver,
    default_division,
    halved,
    isometric,
    remove,
    swap,
)

DEFAULT_NUMBER = 8
_TRAINED_SHARE = 0.75  # of the training classes, as in the published splits; the others choose the checkpoint
_PAIRS_SHARE = 0.02  # of the smaller side, as published for 100 classes
Sides = tuple[np.ndarray, np.ndarray]


def build_splits(
    data: str,
    options: dict[str, Any] | None = None,
    build: BuildOptions | None = None,
    *,
    model_options: dict[str, Any] | None = None,
    trusts_plugins: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[SplitFile, list[str]]:
    """Splits of the classes of a data set from easy to hard. The same arguments give the same splits.

    Args:
        data: what `--data` names.
        options: of the data.
        build: the settings.
        model_options: of the trunk that `build.model` names.
        trusts_plugins: run the files of code that the run which `build.model` names names in turn.
        tell: receives lines of progress.

    Returns:
        The splits, and notes for the user.

    Raises:
        ConfigError: an unknown name, more shots than any class has.
        DataError: data that cannot be read, too few classes, two of one name.
    """
    build = build or BuildOptions()
    options = options or {}
    source, table, means = class_means(
        data,
        options,
        model=build.model,
        model_options=model_options,
        image_size=build.image_size,
        device=build.device,
        workers=build.workers,
        seed=build.seed,
        trusts_plugins=trusts_plugins,
    )
    _check_names(table, data)
    tell(f"{len(table.labels):,} samples of {len(means):,} classes, described by {means.shape[1]:,} numbers each")
    if build.episodes:  # before the long part
        usable_shots(table.labels, table.class_names, np.arange(len(means)), build.shots)
    vectors = isometric(means)
    (train, test), driver, notes = _start(source, table, data, build, vectors)
    smaller = min(len(train), len(test))
    _check_sides(train, test, data)
    pairs = build.pairs or _pairs(smaller)
    divisions = _walk(vectors, default_division(vectors, train, test), driver, build, pairs, smaller, tell)
    places, choice_notes = _choose(divisions, build)
    splits, episode_notes = _as_splits([divisions[place] for place in places], table, build)
    default = next(split.id for split, place in zip(splits, places, strict=True) if divisions[place].stage == "default")
    made_by = {**_made_by(build, pairs, model_options), "number": len(splits)}
    progress = tuple({"stage": d.stage, "swapped": d.swapped, "removed": d.removed, "fid": _rounded(d.fid)} for d in divisions)
    file = SplitFile(_data_name(data), options, default, tuple(splits), made_by, progress)
    return file, [*table.skipped, *notes, *choice_notes, *episode_notes]


def _check_sides(train: np.ndarray, test: np.ndarray, data: str) -> None:
    if min(len(train), len(test)) < LEAST_SIDE:
        raise DataError(
            f"the default split of '{data}' has {len(train)} training and {len(test)} test classes, but each side needs"
            f" at least {LEAST_SIDE}"
        )


def _made_by(build: BuildOptions, pairs: int, model_options: dict[str, Any] | None) -> dict[str, Any]:
    """What the file says about how it was made."""
    model = build.model if build.model == AS_THEY_ARE else _place(build.model)
    settings = {**asdict(build), "pairs": pairs, "model": model}
    return {"command": "splits ood", **settings, "model_options": dict(model_options or {})}


def _rounded(fid: float) -> float:
    """Ten digits: the last ones depend on how many threads computed it."""
    return float(f"{fid:.10g}")


def _pairs(smaller: int) -> int:
    return max(1, round(_PAIRS_SHARE * smaller))


def _place(model: str) -> str:
    return str(expanded(model).resolve()) if is_run(model) else absolute(model)


def _data_name(data: str) -> str:
    """A data set's name, or an absolute path, so that the file can be used from anywhere."""
    implied = find_source(data)[1]
    return str(expanded(data).resolve()) if implied else absolute(data)


def _check_names(table: Table, data: str) -> None:
    names = table.class_names
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DataError(f"two classes of '{data}' are called '{twice}'; splits go by names and need different ones")
    if len(set(table.labels.tolist())) < len(names):
        raise DataError(f"'{data}' names {len(names)} classes, but has samples of {len(set(table.labels.tolist()))} only")


def _start(
    source: DataSource, table: Table, data: str, build: BuildOptions, vectors: np.ndarray
) -> tuple[Sides, Driver, list[str]]:
    """The default split, what drives it apart, and notes."""
    everyone = np.arange(len(table.class_names))
    if build.driver == "groups":
        groups = _groups(table, data, build.test_groups)
        parts = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups)]
        notes = ["the default split has a share of every group on each side"]
        return halved(parts, build.test_fraction, build.seed), ByGroups(np.isin(groups, build.test_groups), build.seed), notes
    if build.start == "random":
        return halved([everyone], build.test_fraction, build.seed), ByMeans(vectors), ["the default split is random"]
    sides, reason = _own_split(source, table, build.seed)
    if sides is None and build.start == "data":
        raise DataError(f"start is 'data', but {reason}. Say --start random")
    if sides is None:
        return halved([everyone], build.test_fraction, build.seed), ByMeans(vectors), [f"{reason}: the default split is random"]
    notes = ["the default split is the data's own; its validation classes count as training"]
    return sides, ByMeans(vectors), ([f"in it {table.split_note}"] if table.split_note else []) + notes


def _own_split(source: DataSource, table: Table, seed: int) -> tuple[Sides | None, str]:
    """The data's own split by classes, or why there is none."""
    split = source.split(table, seed)
    if split is None:
        return None, "the data has no split of its own"
    held_out = "test" if (split == "test").any() else "validation"
    test, train = np.unique(table.labels[split == held_out]), np.unique(table.labels[split != held_out])
    if not len(test) or not len(train):
        return None, "the data's own split has one part only"
    shared = len(np.intersect1d(train, test))
    return ((train, test), "") if not shared else (None, f"the data's own split has {shared} classes on both sides")


def _groups(table: Table, data: str, test_groups: Sequence[str]) -> np.ndarray:
    if table.class_groups is None:
        raise ConfigError(
            f"'{data}' has no groups of classes, which the driver 'groups' needs; an .npz file gives them as 'class_group'"
        )
    groups = sorted(set(table.class_groups))
    for group in test_groups:
        if group not in groups:
            raise ConfigError(f"test_groups has '{group}', but '{data}' has no such group.{suggestion(group, groups)}")
    if set(test_groups) == set(groups):
        raise ConfigError(f"test_groups are all {len(groups)} groups of '{data}'; leave some to train on")
    return np.array(table.class_groups)


def _walk(
    vectors: np.ndarray,
    start: Division,
    driver: Driver,
    build: BuildOptions,
    pairs: int,
    smaller: int,
    tell: Callable[[str], None],
) -> list[Division]:
    """Every division between the easiest and the hardest, the default among them."""

    def tell_division(division: Division) -> None:
        tell(f"{division.stage}: {abs(division.swapped):,} swapped, {division.removed:,} removed, FID {division.fid:.4g}")

    tell(f"default: FID {start.fid:.4g}")
    common: dict[str, Any] = {"pairs": pairs, "patience": build.patience, "iterations": build.iterations, "tell": tell_division}
    goes_easier = build.driver == "means" if build.easier is None else build.easier
    easier = swap(vectors, start, driver, history=build.easier_history, easier=True, **common) if goes_easier else []
    harder = swap(vectors, start, driver, history=build.history, **common)
    most = int(build.removal * smaller)
    hardest = (harder or [start])[-1]
    removals = remove(vectors, hardest, driver, count=pairs, most=most, patience=build.patience, tell=tell_division)
    return [*reversed(easier), start, *harder, *removals]


def _choose(divisions: list[Division], build: BuildOptions) -> tuple[list[int], list[str]]:
    if build.fids is not None:
        return by_targets(divisions, build.fids)
    if build.fid_step is not None:
        return by_spacing(divisions, build.fid_step)
    return evenly_spaced(divisions, build.number or DEFAULT_NUMBER)


def _as_splits(divisions: list[Division], table: Table, build: BuildOptions) -> tuple[list[ClassSplit], list[str]]:
    names = table.class_names
    shots: list[int] = []
    notes: list[str] = []
    if build.episodes:
        tested = np.unique(np.concatenate([division.test for division in divisions]))
        shots, notes = usable_shots(table.labels, names, tested, build.shots, build.short_classes)
    sample_names = table.names()
    supports = {
        k: [supports_by_class(table.labels, sample_names, names, k, number, build.seed) for number in range(build.episodes)]
        for k in shots
    }
    # One order for all splits, so that a class which stays on the training side keeps its part as far as possible.
    order = np.random.RandomState([build.seed, 17]).permutation(len(names))
    splits = []
    for identity, division in zip(identities(divisions), divisions, strict=True):
        train, test = np.sort(division.train), np.sort(division.test)
        ranked = train[np.argsort(order[train])]
        trained = int(_TRAINED_SHARE * len(train))
        episodes: dict[int, tuple[Episode, ...]] = {
            k: tuple({names[label]: supports_of[label] for label in test} for supports_of in drawn)
            for k, drawn in supports.items()
        }
        splits.append(
            ClassSplit(
                identity,
                _rounded(division.fid),
                division.swapped,
                division.removed,
                train=tuple(names[label] for label in train),
                test=tuple(names[label] for label in test),
                train_part=tuple(names[label] for label in np.sort(ranked[:trained])),
                validation_part=tuple(names[label] for label in np.sort(ranked[trained:])),
                episodes=episodes,
            )
        )
    return splits, notes
