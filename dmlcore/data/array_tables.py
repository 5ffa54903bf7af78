"""From arrays `x`, `y` and what may stand beside them to a table. Where the arrays come from is in the sources."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dmlcore.data.class_names import is_missing, tidy_names
from dmlcore.data.image_tables import PixelOptions, choose_augmentation
from dmlcore.data.levels import levelled
from dmlcore.data.multi_label import NamedSets, labelled_rows, set_classes, sets_of_matrix
from dmlcore.data.part_words import split_words
from dmlcore.data.sources import Table
from dmlcore.data.stores import FeatureStore, PixelStore
from dmlcore.errors import DataError, suggestion
from dmlcore.files import writable_text

ARRAYS = ("x", "y", "class_name", "class_group", "split", "official_split")
_CHUNK = 65536  # rows looked at in one go, to keep temporary memory small
_IMAGES = "uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1, 3 or 4"


def array_table(
    arrays: Mapping[str, np.ndarray],
    where: str,
    options: PixelOptions,
    *,
    needs_labels: bool = True,
    takes_floats: bool = False,
    sets: NamedSets | None = None,
) -> Table:
    """A table of features or of images of one size.

    Args:
        arrays: `x` (float [N, F] features, or uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] images) and `y` (whole numbers or
            text [N], or a matrix [N, L] of 0 and 1: which labels each sample has). There may be `class_name` and `class_group`
            (text [C] for labels 0..C - 1), and `split` or `official_split` (text or 0, 1, 2 per sample). Others are mentioned
            in a note.
        where: what holds them, for messages.
        options: how images are augmented.
        needs_labels: refuse arrays without `y`.
        takes_floats: take images of floats [N, C, H, W] as they are.
        sets: labels of the samples instead of `y`, where they have several.

    Raises:
        DataError: a missing array, wrong shapes or types, numbers that are not finite, no label at all.
    """
    has_labels = "y" in arrays or sets is not None
    for array in ("x", "y") if needs_labels and sets is None else ("x",):
        if array not in arrays:
            raise DataError(f"{where} has no array '{array}'; it has {', '.join(map(writable_text, arrays)) or 'none'}")
    x = arrays["x"]
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"'x' in {where} is empty")
    if "y" in arrays and arrays["y"].ndim == 2 and (arrays["y"].shape[1] > 1 or arrays["y"].dtype == bool):
        if len(arrays["y"]) != len(x):
            raise DataError(f"'y' in {where} has {len(arrays['y'])} rows, but 'x' has {len(x)}")
        sets = sets_of_matrix(arrays["y"], arrays.get("class_name"), where)
    if sets is not None:
        if getattr(options, "levels", ()):
            raise DataError(f"levels are for one label per sample, but those of {where} have several")
        return _table_of_sets(x, sets, arrays, where, options, takes_floats)
    if has_labels:
        y, has_label = present_labels(arrays["y"], len(x), where)
    else:
        arrays = {name: arrays[name] for name in arrays if not name.startswith("class_")}
        y, has_label = np.full(len(x), ""), np.ones(len(x), dtype=bool)
    labels, class_names, notes = named_classes(y, arrays.get("class_name"), where)
    groups = named_classes(y, arrays["class_group"], where, "class_group")[1] if "class_group" in arrays else None
    split = _split(arrays, len(x), has_label, where)
    named = getattr(options, "levels", ())
    unused = [name for name in arrays if name not in (*ARRAYS, *named)]
    if unused:
        notes.append(f"arrays not used: {', '.join(writable_text(name) for name in unused)}")
    samples = None
    if not has_label.all():
        notes.append(f"{int((~has_label).sum())} rows without a label (empty or nan) were left out")
        x, samples = x[has_label], [str(row) for row in np.flatnonzero(has_label)]
    table = _table(x, labels, class_names, where, options, takes_floats)
    table.split, table.skipped, table.sample_names = split, notes, samples
    table.class_groups, table.has_labels = groups, has_labels
    if named and has_labels:
        columns = {name: _level(arrays, name, len(has_label), where)[has_label].tolist() for name in named}
        table.labels, table.class_names, table.levels, remarks = levelled(labels, class_names, columns, where)
        table.class_groups = None  # of the classes as they were
        notes += remarks
    return table


def _level(arrays: Mapping[str, np.ndarray], name: str, count: int, where: str) -> np.ndarray:
    """Coarser labels, text [N]."""
    if name not in arrays:
        raise DataError(f"{where} has no array '{name}' of coarser labels.{suggestion(name, list(arrays))}")
    if arrays[name].shape != (count,) or arrays[name].dtype.kind not in "iuU":
        raise DataError(
            f"'{name}' in {where} is {arrays[name].dtype} {arrays[name].shape}, but must be a label for each of {count}"
        )
    return arrays[name].astype(str)


def _table_of_sets(
    x: np.ndarray, sets: NamedSets, arrays: Mapping[str, np.ndarray], where: str, options: PixelOptions, takes_floats: bool
) -> Table:
    """A table of samples that have several labels each; those with none are left out."""
    rows, notes = labelled_rows(sets, len(x), where)
    classes = set_classes(sets.sets.select(rows), sets.names)
    table = _table(x[rows] if len(rows) < len(x) else x, classes.labels, classes.class_names, where, options, takes_floats)
    table.label_sets, table.label_names = classes.sets, sets.names
    has_label = np.zeros(len(x), dtype=bool)
    has_label[rows] = True
    table.split, table.skipped = _split(arrays, len(x), has_label, where), notes
    table.sample_names = [str(row) for row in rows] if len(rows) < len(x) else None
    unused = [name for name in arrays if name not in ARRAYS or name == "class_group"]
    if unused:
        notes.append(f"arrays not used: {', '.join(writable_text(name) for name in unused)}")
    return table


def _table(
    x: np.ndarray, labels: np.ndarray, class_names: list[str], where: str, options: PixelOptions, takes_floats: bool
) -> Table:
    if x.ndim == 2:
        return Table("features", FeatureStore(finite_features(x, where)), labels, class_names, (x.shape[1],))
    is_float = takes_floats and x.ndim == 4 and x.dtype.kind == "f" and 0 not in x.shape
    store = FeatureStore(finite_features(x, where)) if is_float else PixelStore(_pixels(x, where))
    shape = tuple(store.values.shape[1:] if isinstance(store, FeatureStore) else store.pixels.shape[1:])
    return Table("images", store, labels, class_names, shape, augmentation=choose_augmentation(options, shape))


def present_labels(y: np.ndarray, count: int, where: str, noun: str = "y") -> tuple[np.ndarray, np.ndarray]:
    """The labels that are there, whole numbers or text, and bool [N]: which rows have one.

    Args:
        y: [N] of any type.
        count: N that is expected.
        where: what holds them, for messages.
        noun: of the array or column.

    Raises:
        DataError: another shape or type, fractions, numbers so large that several are one float, no label at all.
    """
    if y.shape != (count,):
        raise DataError(f"'{noun}' in {where} has shape {y.shape}, but 'x' has {count} rows: one label per row is needed")
    if y.dtype.kind not in "iubUf":
        raise DataError(f"'{noun}' in {where} is of type {y.dtype}, but must hold whole numbers or text")
    has_label = np.ones(count, dtype=bool)
    if y.dtype.kind == "U":
        texts, inverse = np.unique(y, return_inverse=True)
        has_label = ~np.array([is_missing(str(text)) for text in texts])[inverse]
    if y.dtype.kind == "f":
        has_label = ~np.isnan(y)
    if not has_label.any():
        raise DataError(f"'{noun}' in {where} has no label: all are empty or nan")
    y = y[has_label]
    if y.dtype.kind != "f":
        return y, has_label
    if not np.isfinite(y).all() or (y != np.floor(y)).any():
        raise DataError(f"'{noun}' in {where} must hold whole numbers or text, but holds fractions or infinite numbers")
    bits = min(np.finfo(y.dtype).nmant + 1, 62)  # beyond, neighbouring whole numbers are one float
    if (np.abs(y) > 2.0**bits).any():
        raise DataError(
            f"'{noun}' in {where} holds {y.dtype} beyond 2^{bits}, where different whole numbers become one. Save labels as"
            f" integers or text"
        )
    return y.astype(np.int64), has_label


def named_classes(
    y: np.ndarray, names: np.ndarray | None, where: str, array: str = "class_name"
) -> tuple[np.ndarray, list[str], list[str]]:
    """Labels int64 [N] in 0..C - 1, a name for each, and notes. Texts that differ only in blanks or in how accents are stored
    are one class.

    Args:
        y: what `present_labels` gave.
        names: text [C], of whole numbers 0..C - 1, or None: they go by themselves.
        where: what holds them, for messages.
        array: what `names` is called.

    Raises:
        DataError: a label that has no name.
    """
    present, labels = np.unique(y, return_inverse=True)
    if y.dtype.kind == "U":
        tidied, notes = tidy_names(str(text) for text in present)
        present, merged = np.unique([tidied[str(text)] for text in present], return_inverse=True)
        return merged[labels].astype(np.int64), [str(text) for text in present], notes
    class_names = [str(label) for label in present]
    if names is not None and y.dtype.kind in "iu":
        if names.ndim != 1 or names.dtype.kind != "U" or present[0] < 0 or present[-1] >= len(names):
            raise DataError(
                f"'{array}' in {where} must be text with a name for each label {present[0]}..{present[-1]}, but"
                f" is {names.dtype} of shape {names.shape}"
            )
        tidied, _ = tidy_names(str(names[label]) for label in present)  # two labels of one name stay two classes
        class_names = [tidied[str(names[label])] for label in present]
    return labels.astype(np.int64), class_names, []


def finite_features(x: np.ndarray, where: str, noun: str = "x") -> np.ndarray:
    """Numbers [N, ...] as float16 or float32.

    Raises:
        DataError: another type, no columns, NaN or infinite numbers.
    """
    if x.dtype.kind not in "fiub":
        raise DataError(f"'{noun}' in {where} is of type {x.dtype}, but must hold numbers")
    if 0 in x.shape[1:]:
        raise DataError(f"'{noun}' in {where} has no columns")
    values = x
    if x.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and named below
            values = x.astype(np.float32)
    axes = tuple(range(1, values.ndim))
    bad = np.concatenate([~np.isfinite(values[start : start + _CHUNK]).all(axes) for start in range(0, len(x), _CHUNK)])  # [N]
    if bad.any():
        rows = np.flatnonzero(bad)
        raise DataError(f"'{noun}' in {where} is NaN or infinite in {len(rows)} rows, the first is row {rows[0]}. Remove them")
    return values


def _split(arrays: Mapping[str, np.ndarray], count: int, has_label: np.ndarray, where: str) -> np.ndarray | None:
    """The part of every row that has a label."""
    name = "split" if "split" in arrays else "official_split"
    if name not in arrays:
        return None
    if arrays[name].shape != (count,):
        raise DataError(f"'{name}' in {where} has shape {arrays[name].shape}, but 'x' has {count} rows")
    if arrays[name].dtype.kind not in "iubUf":
        raise DataError(f"'{name}' in {where} is of type {arrays[name].dtype}, but must hold text or 0, 1, 2")
    return split_words(arrays[name], where)[has_label]


def _pixels(x: np.ndarray, where: str) -> np.ndarray:
    """uint8 [N, C, H, W] with one or three channels. Transparency is laid on white."""
    expected = f"features [N, F], or {_IMAGES}"
    if x.ndim not in (3, 4) or x.dtype != np.uint8:
        raise DataError(f"'x' in {where} is {x.dtype} of shape {x.shape}, but must be {expected}")
    if x.ndim == 3:
        x = x[:, None]  # [N, 1, H, W]
    elif x.shape[3] in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    if x.shape[1] not in (1, 3, 4) or 0 in x.shape:
        raise DataError(f"'x' in {where} is {x.dtype} of shape {x.shape}, but must be {expected}")
    if x.shape[1] == 4:
        opaque = x[:, 3:].astype(np.float32) / 255
        x = (x[:, :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
    return np.ascontiguousarray(x)
