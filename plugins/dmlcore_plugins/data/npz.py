"""Tables in `.npz` files: feature vectors or images `x` with labels `y`. Never reads pickled objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import (
    DataSource,
    FeatureStore,
    ImageOptions,
    PixelStore,
    Table,
    choose_augmentation,
    is_missing,
    split_words,
    tidy_names,
)
from dmlcore.errors import DataError
from dmlcore.files import expanded, writable_text
from dmlcore.seals import check_archive_file

_ARRAYS = ("x", "y", "class_name", "class_group", "split", "official_split")
_LAST_CHARACTER = 0x10FFFF
_CHUNK = 65536  # rows looked at in one go, to keep temporary memory small


class ArrayFile(DataSource):
    """An `.npz` file with `x` (float [N, F] features, or uint8 [N, H, W] or [N, H, W, C] images) and `y` (labels [N]). It may
    have `class_name` and `class_group` (text [C] for labels 0..C - 1), and `split` or `official_split` (text or 0, 1, 2 per
    sample).
    """

    name = "npz"
    Options = ImageOptions
    reads = "an .npz with x, y"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Files that end in .npz."""
        return path.suffix.lower() == ".npz" and not path.is_dir()

    def load(self) -> Table:
        """Read the file.

        Raises:
            DataError: a missing array, objects, wrong shapes, numbers that are not finite.
        """
        if not self.options.path:
            raise DataError("the data 'npz' needs a path: --data FILE.npz, or --npz.path FILE.npz")
        file = expanded(self.options.path)
        arrays = read_arrays(file)
        has_labels = "y" in arrays
        for array in ("x", "y") if self.needs_labels else ("x",):
            if array not in arrays:
                raise DataError(f"'{file}' has no array '{array}'; it has {', '.join(arrays) or 'none'}")
        x = arrays["x"]
        if x.ndim == 0 or len(x) == 0:
            raise DataError(f"'x' in '{file}' is empty")
        if has_labels:
            y, has_label = _labels(arrays["y"], len(x), file)
        else:
            arrays = {name: arrays[name] for name in arrays if not name.startswith("class_")}
            y, has_label = np.full(len(x), ""), np.ones(len(x), dtype=bool)
        labels, class_names, notes = _classes(y, arrays.get("class_name"), file)
        groups = _classes(y, arrays["class_group"], file, "class_group")[1] if "class_group" in arrays else None
        split = _split(arrays, len(x), has_label, file)
        unused = [name for name in arrays if name not in _ARRAYS]
        if unused:
            notes.append(f"arrays not used: {', '.join(writable_text(name) for name in unused)}")
        samples = None
        if not has_label.all():
            notes.append(f"{int((~has_label).sum())} rows without a label (empty or nan) were left out")
            x, samples = x[has_label], [str(row) for row in np.flatnonzero(has_label)]
        about = {"sample_names": samples, "class_groups": groups, "has_labels": has_labels}
        if x.ndim == 2:
            store = FeatureStore(_features(x, file))
            return Table("features", store, labels, class_names, (x.shape[1],), split, notes, **about)
        pixels = _pixels(x, file)
        shape = pixels.shape[1:]
        augmentation = choose_augmentation(self.options, shape)
        return Table("images", PixelStore(pixels), labels, class_names, shape, split, notes, augmentation, **about)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file, by name.

    Raises:
        DataError: no such file, a damaged file, an array of objects.
    """
    name = ""
    try:
        check_archive_file(file)
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.lib.npyio.NpzFile):
            with opened:
                arrays = {}
                for name in opened.files:
                    arrays[name] = _valid(opened[name])
                return arrays
    except FileNotFoundError:
        raise DataError(f"there is no file '{file}'") from None
    except Exception as error:  # numpy and zipfile raise nearly every type for a damaged file, from TokenError to MemoryError
        if name and "bject arrays" in str(error):
            raise DataError(
                f"'{name}' in '{file}' holds Python objects, which are not read because they can run code."
                f" Save plain numbers or text instead"
            ) from None
        reason = (
            "it does not begin like one" if "pickle" in str(error) else " ".join(str(error).split()) or type(error).__name__
        )
        raise DataError(f"'{file}' is no .npz file, or a damaged one: {reason}") from None
    raise DataError(f"'{file}' is a single array, but x and y are needed: save it with numpy.savez(file, x=..., y=...)")


def _valid(array: np.ndarray) -> np.ndarray:
    """The array, if it is one whose text is Unicode: numpy takes any four bytes for a character.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError("a part of it is no array")
    if array.dtype.kind == "U" and array.dtype.itemsize:
        characters = np.ascontiguousarray(array).reshape(-1).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if (characters > _LAST_CHARACTER).any():
            raise ValueError("its text is no Unicode")
    return array


def _labels(y: np.ndarray, count: int, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The labels that are there, whole numbers or text, and bool [N]: which rows have one."""
    if y.shape != (count,):
        raise DataError(f"'y' in '{file}' has shape {y.shape}, but 'x' has {count} rows: one label per row is needed")
    if y.dtype.kind not in "iubUf":
        raise DataError(f"'y' in '{file}' is of type {y.dtype}, but must hold whole numbers or text")
    has_label = np.ones(count, dtype=bool)
    if y.dtype.kind == "U":
        texts, inverse = np.unique(y, return_inverse=True)
        has_label = ~np.array([is_missing(str(text)) for text in texts])[inverse]
    if y.dtype.kind == "f":
        has_label = ~np.isnan(y)
    if not has_label.any():
        raise DataError(f"'y' in '{file}' has no label: all are empty or nan")
    y = y[has_label]
    if y.dtype.kind != "f":
        return y, has_label
    if not np.isfinite(y).all() or (y != np.floor(y)).any():
        raise DataError(f"'y' in '{file}' must hold whole numbers or text, but holds fractions or infinite numbers")
    bits = min(np.finfo(y.dtype).nmant + 1, 62)  # beyond, neighbouring whole numbers are one float
    if (np.abs(y) > 2.0**bits).any():
        raise DataError(
            f"'y' in '{file}' holds {y.dtype} beyond 2^{bits}, where different whole numbers become one. Save labels as"
            f" integers or text"
        )
    return y.astype(np.int64), has_label


def _classes(
    y: np.ndarray, names: np.ndarray | None, file: Path, array: str = "class_name"
) -> tuple[np.ndarray, list[str], list[str]]:
    """Labels 0..C - 1, a name for each, and notes. Texts that differ only in blanks or in how accents are stored are one."""
    present, labels = np.unique(y, return_inverse=True)
    if y.dtype.kind == "U":
        tidied, notes = tidy_names(str(text) for text in present)
        present, merged = np.unique([tidied[str(text)] for text in present], return_inverse=True)
        return merged[labels].astype(np.int64), [str(text) for text in present], notes
    class_names = [str(label) for label in present]
    if names is not None and y.dtype.kind in "iu":
        if names.ndim != 1 or names.dtype.kind != "U" or present[0] < 0 or present[-1] >= len(names):
            raise DataError(
                f"'{array}' in '{file}' must be text with a name for each label {present[0]}..{present[-1]}, but"
                f" is {names.dtype} of shape {names.shape}"
            )
        tidied, _ = tidy_names(str(names[label]) for label in present)  # two labels of one name stay two classes
        class_names = [tidied[str(names[label])] for label in present]
    return labels.astype(np.int64), class_names, []


def _split(arrays: dict[str, np.ndarray], count: int, has_label: np.ndarray, file: Path) -> np.ndarray | None:
    """The part of every row that has a label."""
    name = "split" if "split" in arrays else "official_split"
    if name not in arrays:
        return None
    if arrays[name].shape != (count,):
        raise DataError(f"'{name}' in '{file}' has shape {arrays[name].shape}, but 'x' has {count} rows")
    if arrays[name].dtype.kind not in "iubUf":
        raise DataError(f"'{name}' in '{file}' is of type {arrays[name].dtype}, but must hold text or 0, 1, 2")
    return split_words(arrays[name], f"'{file}'")[has_label]


def _features(x: np.ndarray, file: Path) -> np.ndarray:
    if x.dtype.kind not in "fiub":
        raise DataError(f"'x' in '{file}' is of type {x.dtype}, but must hold numbers")
    if x.shape[1] == 0:
        raise DataError(f"'x' in '{file}' has no columns")
    values = x if x.dtype in (np.float16, np.float32) else x.astype(np.float32)
    bad = np.concatenate([~np.isfinite(values[start : start + _CHUNK]).all(1) for start in range(0, len(x), _CHUNK)])  # [N]
    if bad.any():
        rows = np.flatnonzero(bad)
        raise DataError(f"'x' in '{file}' is NaN or infinite in {len(rows)} rows, the first is row {rows[0]}. Remove them")
    return values


def _pixels(x: np.ndarray, file: Path) -> np.ndarray:
    """uint8 [N, C, H, W] with one or three channels. Transparency is laid on white."""
    expected = "features [N, F], or uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1, 3 or 4"
    if x.ndim not in (3, 4) or x.dtype != np.uint8:
        raise DataError(f"'x' in '{file}' is {x.dtype} of shape {x.shape}, but must be {expected}")
    if x.ndim == 3:
        x = x[:, None]  # [N, 1, H, W]
    elif x.shape[3] in (1, 3, 4):
        x = x.transpose(0, 3, 1, 2)
    if x.shape[1] not in (1, 3, 4) or 0 in x.shape:
        raise DataError(f"'x' in '{file}' is {x.dtype} of shape {x.shape}, but must be {expected}")
    if x.shape[1] == 4:
        opaque = x[:, 3:].astype(np.float32) / 255
        x = (x[:, :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
    return np.ascontiguousarray(x)


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [ArrayFile]
