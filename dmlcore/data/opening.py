"""From what the user names to the three parts of the data. The sources, the split and the parts have modules of their own."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore import plugins
from dmlcore.config import build_options, check_range
from dmlcore.data.datasets import LabelledDataset
from dmlcore.data.images import Interpolation
from dmlcore.data.multi_label import held_out_labels, split_by_label
from dmlcore.data.part_words import PARTS, join_own_entries, rows_of_part
from dmlcore.data.python_data import PythonData
from dmlcore.data.recorded_splits import RecordedSplit
from dmlcore.data.sources import DataSource, Table
from dmlcore.data.split_files import ClassSplit
from dmlcore.data.splits import (
    Splits,
    can_split_by_class,
    check_fractions,
    check_part,
    complete_split,
    split_by_class,
    split_samples,
    split_within_classes,
)
from dmlcore.data.stores import PixelStore
from dmlcore.data.validating import validate_by
from dmlcore.errors import DataError, PluginError
from dmlcore.files import expanded

_PACKED = (".zip", ".tar", ".gz", ".tgz")  # what users point at when they forget to unpack


def default_source() -> str:
    """The name of the source where no data are named.

    Raises:
        PluginError: no source is the default, or two are.
    """
    names = [entry.name for entry in plugins.registry("data").values() if vars(entry.component).get("is_default")]
    if len(names) != 1:
        raise PluginError(f"the default data must be one source, but {' and '.join(names) or 'none'} says it is")
    return names[0]


def find_source(data: str) -> tuple[type[DataSource], dict[str, Any]]:
    """The source class that reads `data`, and the options that follow from it (the path).

    Args:
        data: a data set's name, `FILE.py:CLASS`, or a path that a source claims: built in are folders, .csv and .npz files. A
            name wins over a folder of the same name; `./name` is always a path.

    Raises:
        DataError: neither a data set nor a path that one source claims.
        ConfigError: `FILE.py:CLASS` that names no data set.
    """
    entries = plugins.registry("data")
    if data in entries:
        return entries[data].component, {}
    if plugins.plugin_files.is_reference(data) or plugins.is_stand_in("data", data):
        return plugins.find("data", data).component, {}
    path = expanded(data)
    exists = os.path.exists(path)  # which says no for a name that is too long or holds a NUL, too
    if not exists and "{" not in path.name:
        raise DataError(_why_not_there(data, path, entries))
    if exists and not path.is_file() and not path.is_dir():
        raise DataError(f"'{data}' is neither a file nor a folder, but a pipe, a socket or a device. Save the data as a file")
    # A subclass of a source, such as one of a plugin, does not inherit the paths: the two could not be told apart.
    claims = [entry for entry in entries.values() if "claims" in vars(entry.component) and entry.component.claims(path)]
    claims = [entry for entry in claims if not entry.component.gives_way] or claims
    if len(claims) > 1:
        owners = " and ".join(f"'{entry.name}' of {entry.owner}" for entry in claims)
        name = claims[0].name
        raise DataError(f"two sources claim '{data}': {owners}. Choose by name, such as --data {name} --{name}.path {data}")
    if not claims and not exists:
        raise DataError(_why_not_there(data, path, entries))
    if not claims:
        forms = [entry.component.reads for entry in entries.values() if entry.component.reads]
        unpack = " Unpack it first." if path.suffix.lower() in _PACKED else ""
        raise DataError(f"'{data}' cannot be read as data: give {', '.join(forms[:-1])} or {forms[-1]}.{unpack}")
    return claims[0].component, {"path": data}


def _why_not_there(data: str, path: Path, entries: dict[str, plugins.Entry]) -> str:
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    # `nope.npz` is a file that is missing, not the source `npz` misspelt: names with a suffix are compared with files only
    near = [] if path.suffix else difflib.get_close_matches(data, sorted(entries), n=1, cutoff=0.5)
    near = near or [str(path.parent / name) for name in difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)]
    named = [name for name, entry in sorted(entries.items()) if not entry.component.reads]
    hint = f" Did you mean '{near[0]}'?" if near else f" Data sets: {', '.join(named)}."
    return f"there is no data set '{data}', and no file or folder of that name.{hint}"


def open_data(
    data: Any = None,
    *,
    options: dict[str, Any] | None = None,
    fractions: tuple[float, float, float] = (0.5, 0.15, 0.35),
    seed: int = 0,
    image_size: int | None = None,
    default_image_size: int = 64,
    interpolation: Interpolation = "bilinear",
    class_split: ClassSplit | None = None,
    validation: str = "classes",
    recorded: RecordedSplit | None = None,
    is_whole: bool = False,
    needs_labels: bool = True,
) -> Splits:
    """Training, validation and test parts of a data set.

    Args:
        data: a data set's name, or the path of a folder with a sub-folder per class, a .csv manifest (path,label[,split]), an
            .npz file (x, y) or another that a source claims. A name wins over a folder of the same name; `./name` is always a
            path. Or the data themselves: arrays or tensors (x, y), a torch `Dataset` of (sample, label), a `DataLoader`, a data
            set of Hugging Face. None: the default.
        options: of the data set.
        fractions: of the classes for train, validation and test, when the data gives no split. Their sum is 1.
        seed: of the split.
        image_size: side that images are resized to, pixels. None: images of one size up to 128 pixels stay as they are, and
            image files of different sizes become `default_image_size`.
        default_image_size: see there, pixels. A model says what it needs by `dmlcore.models.images_wanted`.
        interpolation: how images are resized, where the options of the source do not say it.
        class_split: says which classes are in which part, instead of the data or the seed.
        validation: what chooses the checkpoint: held-out training `classes`, held-out `samples` of them, or `none`. The
            validation part is then empty.
        recorded: the split that a run keeps, which goes before all of these. What is new in the data is left out.
        is_whole: refuse data that lack a sample of `recorded`.
        needs_labels: refuse data without labels. Else those whose labels say nothing are split by samples.

    Raises:
        ConfigError: an unknown option, fractions or sizes out of range.
        DataError: the data cannot be used; one line says why.
    """
    data = default_source() if data is None else os.fspath(data) if isinstance(data, os.PathLike) else data
    check_fractions(fractions)
    source, table = load_table(
        data,
        options=options,
        image_size=image_size,
        default_image_size=default_image_size,
        interpolation=interpolation,
        needs_labels=needs_labels,
    )
    has_labels = needs_labels or (table.has_labels and _tells(table.labels))
    data = data if isinstance(data, str) else source.name
    name = data if data == source.name or data in plugins.registry("data") else str(expanded(data))
    if recorded is not None:
        parts, notes = recorded.datasets(table, is_whole=is_whole)
        record = recorded.to_json
    else:
        if not has_labels:
            split, note = split_samples(source.split(table, seed), len(table.labels), fractions, seed)
            split[split == "validation"] = "train" if validation == "none" else "validation"
            notes = [note]
        elif class_split is not None:
            split, notes = _split_by_names(table, class_split, data)
            generator, by_class = np.random.default_rng((seed, 2)), table.label_sets is None
            notes += validate_by(split, table.labels, validation, fractions, generator, by_class=by_class)
        else:
            split, notes = split_by_source(source, table, fractions, seed, data, validation)
        parts = _parts(table, split)
        words, parts_of = np.unique(split, return_inverse=True)  # a byte each, where text would take 40
        record = functools.partial(_record, table, words, parts_of.astype(np.int8), name)
        table.split = None
    names = table.names() if table.paths is None else table.paths
    for part in parts.values():
        part.names = names
    notes = [*table.skipped, *notes]
    _judge_by_new_labels(parts)
    notes += _notes_on_levels(parts)
    checked = PARTS if recorded is None or is_whole else ()  # of what a run has left, eval says what can be measured
    for part in checked if needs_labels else checked[1:] if has_labels else ():
        if part != "validation" or validation != "none":
            notes += check_part(parts[part], part)
    return Splits(
        name,
        table.kind,
        table.sample_shape,
        **parts,
        notes=notes,
        seed=seed,
        sample_names=table.names(),
        paths=table.paths,
        record=record,
        has_labels=has_labels,
    )


def _tells(labels: np.ndarray) -> bool:
    """Whether there are two classes, and one with two samples."""
    counts = np.bincount(labels)
    return int((counts > 0).sum()) > 1 and int(counts.max()) > 1


def _parts(table: Table, split: np.ndarray) -> dict[str, LabelledDataset]:
    parts = {}
    for part in (*PARTS, "rest"):
        rows, roles = rows_of_part(split, "" if part == "rest" else part)
        parts[part] = LabelledDataset(
            table.samples,
            rows,
            table.labels[rows],
            table.class_names,
            table.sample_shape,
            table.augmentation,
            roles,
            table.label_sets,
            table.label_names,
            table.levels,
        )
    return parts


def _judge_by_new_labels(parts: dict[str, LabelledDataset]) -> None:
    """Where samples have several labels, let validation and test be judged by labels that are not trained on, if they can."""
    trained = parts["train"]
    for part in ("validation", "test"):
        if trained.sets is not None and parts[part].sets is not None:
            parts[part].judged = held_out_labels(parts[part].judged_sets(), trained.judged_sets())


def _notes_on_levels(parts: dict[str, LabelledDataset]) -> list[str]:
    """Which coarser labels of the test part are trained on, whatever the finest ones are."""
    notes = []
    for level in parts["train"].levels:
        trained, tested = parts["train"].at_level(level), parts["test"].at_level(level)
        shared = len(set(tested.class_names) & set(trained.class_names))
        notes.append(f"level '{level}': {shared} of {tested.num_classes} test groups are trained on")
    return notes


def _record(table: Table, words: np.ndarray, parts_of: np.ndarray, name: str) -> bytes:
    return RecordedSplit.of(table, words[parts_of], name).to_json()


def _split_by_names(table: Table, class_split: ClassSplit, data: str) -> tuple[np.ndarray, list[str]]:
    """The part of every sample, text [N], and notes."""
    split = class_split.part_of_class(table.class_names, data)[table.labels]
    left_out = int((split == "").sum())
    notes = [f"classes split as '{class_split.id}' (FID {class_split.fid:.4g}): no test class is trained on"]
    notes += [f"{left_out:,} samples are of classes that this split leaves out"] if left_out else []
    return split, notes


def split_by_source(
    source: DataSource,
    table: Table,
    fractions: tuple[float, float, float],
    seed: int,
    data: str,
    validation: str = "classes",
) -> tuple[np.ndarray, list[str]]:
    """The part of every sample, text [N], as the source has it or at random by class, and notes.

    Raises:
        DataError: the data cannot be split.
    """
    own_split = source.split(table, seed)
    if len(table.class_names) == 1:
        raise DataError(f"'{data}' holds one class, '{table.class_names[0]}', but learning compares classes")
    if own_split is None:
        split, notes = _split_at_random(table, fractions, seed)
        generator, by_class = np.random.default_rng((seed, 2)), table.label_sets is None
        return split, [*notes, *validate_by(split, table.labels, validation, fractions, generator, by_class=by_class)]
    own_split, joined = join_own_entries(own_split, table.labels, table.content_digests)
    split, notes = complete_split(table.labels, own_split, fractions, seed, table.label_sets, validation)
    notes += joined
    notes = notes if table.split is not None else notes[1:]  # a split that the source draws is not the data's own
    return split, [*([table.split_note] if table.split_note else []), *notes]


def _split_at_random(table: Table, fractions: tuple[float, float, float], seed: int) -> tuple[np.ndarray, list[str]]:
    if table.label_sets is not None:
        return split_by_label(table.label_sets.select(table.labels), fractions, seed)
    if not can_split_by_class(table.labels, len(table.class_names)):
        return split_within_classes(table.labels, fractions, seed)
    split = split_by_class(table.labels, len(table.class_names), fractions, seed)
    return split, ["classes split at random into train, validation and test: no test class is trained on"]


def load_table(
    data: Any,
    *,
    options: dict[str, Any] | None = None,
    image_size: int | None = None,
    default_image_size: int = 64,
    interpolation: Interpolation = "bilinear",
    resize: int = 0,
    needs_labels: bool = True,
) -> tuple[DataSource, Table]:
    """The source that a name, a path or an object means, and all its samples, checked. Arguments and errors as of `open_data`.

    Args:
        resize: pixels to which a trained model's pictures are resized before their middle is cut, where the options of the
            source do not say it; 0: as much as covers the cut.
        needs_labels: refuse data without labels, or of one class.
    """
    check_range("image_size", image_size, least=8, most=4096)
    component, implied = find_source(data) if isinstance(data, str) else (PythonData, {})
    built = build_options(component.Options, {**(options or {}), **implied}, component.name)
    if getattr(built, "interpolation", "") == "auto":
        built = dataclasses.replace(built, interpolation=interpolation)
    if resize and getattr(built, "crops", "") == "square":
        built = dataclasses.replace(built, crops="dml", resize=resize, augment="none")
    source = component(built, image_size=image_size, default_image_size=default_image_size)
    source.needs_labels = needs_labels
    if isinstance(source, PythonData) and not isinstance(data, str):
        source.samples, data = data, source.name
    table = source.load()
    _check(table, data)
    if image_size is not None and table.kind == "images" and table.sample_shape[1:] != (image_size, image_size):
        table = _resized(table, image_size, getattr(built, "interpolation", interpolation), getattr(built, "resize", 0), data)
    return source, table


def undecoded(data: str) -> dict[str, Any]:
    """Options by which a source of image files decodes none before it is asked for."""
    fields = getattr(find_source(data)[0].Options, "__dataclass_fields__", {})
    return {"memory_mb": 0} if "memory_mb" in fields else {}


def _check(table: Table, data: str) -> None:
    count = len(table.samples)
    if not count:
        raise DataError(f"'{data}' has no samples")
    labels = table.labels
    if labels.shape != (count,) or labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= len(table.class_names):
        raise PluginError(
            f"data set '{data}': labels are {labels.dtype} {labels.shape}, but must be int64 [{count}] below"
            f" {len(table.class_names)}"
        )
    first = table.samples.fetch(np.zeros(1, dtype=np.int64))
    if tuple(first.shape[1:]) != tuple(table.sample_shape):
        raise PluginError(f"data set '{data}': samples have shape {tuple(first.shape[1:])}, but it says {table.sample_shape}")


def _resized(table: Table, image_size: int, interpolation: Interpolation, resize: int | None, data: str) -> Table:
    if not isinstance(table.samples, PixelStore):
        raise PluginError(f"data set '{data}' gives images of {table.sample_shape[1:]}, but {image_size} pixels were asked for")
    digests = table.content_digests()  # of the data as they are, before another release of PyTorch may resize them otherwise
    table.digests = lambda: digests
    table.samples = table.samples.resized(image_size, interpolation, resize or 0)
    table.sample_shape = (table.sample_shape[0], image_size, image_size)
    return table
