"""The published split files of ooDML (CUB200-2011, CARS196, Stanford Online Products), matched to local data.

A file is a pickle: an id of a split to its `train` and `test` class names, `fid`, `split_train` and `split_val` (classes of the
training side) and `test_episodes`, by shots, episode and class: names of support images. For Stanford Online Products classes
are products, named by the number that begins their files' names, or by the number of their class. An episode is then a list of
classes that are support as a whole. Reading the pickle is `pickles`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data.opening import find_source, load_table, undecoded
from dmlcore.data.sources import Table
from dmlcore.data.split_files import ClassSplit, Episode, SplitFile
from dmlcore.errors import DataError, suggestion
from dmlcore.files import expanded
from dmlcore.plugin_files import absolute
from dmlcore.protocols.shift.episodes import LEFT, can_be_learnt
from dmlcore.protocols.shift.pickles import read_pickle

_NAMED = 3  # names shown of what is missing
_NUMBER = re.compile(r"^\d+[.\-_ ]+(?=\D)")  # `001.Black_footed_Albatross`
_KEYS = ("train", "test", "fid")


def import_published(
    path: str | Path,
    data: str,
    options: dict[str, Any] | None = None,
    *,
    allows_missing: bool = False,
    default: str | None = None,
) -> tuple[SplitFile, list[str]]:
    """Read a published file and match its names to local data.

    Classes are matched by name, then without regard to case, `_` against space, and a number in front, then by what begins the
    names of all their files before a `_`. Images are matched
    within their class, by the path below the data's folder, its last two parts, or the file's name. A name that fits several is
    no match.

    Args:
        path: of the pickle.
        data: what `--data` names.
        options: of the data.
        allows_missing: leave out classes and images that the data lack.
        default: id of the default split. None: the split that trains on the first half of the classes by name, else the one
            of the smallest distance.

    Returns:
        The splits by rising distance, with the file's ids, and notes for the user.

    Raises:
        DataError: another file, classes or images that the data lack.
    """
    published = _read(path)
    _, table = load_table(data, options={**undecoded(data), **(options or {})})
    matched = _Matched(table, data)
    sides = {identity: _sides(split, identity, matched) for identity, split in published.items()}
    start, notes = _default(sides, published, default)
    splits = [
        _split(identity, published[identity], side, sides[start], float(published[start]["fid"]), matched)
        for identity, side in sides.items()
    ]
    matched.report(allows_missing)
    for split in splits:
        if min(len(split.train_part), len(split.validation_part), len(split.test)) < 2:
            raise DataError(
                f"split '{split.id}' keeps {len(split.train_part)} training, {len(split.validation_part)} validation and"
                f" {len(split.test)} test classes in '{data}', but needs two of each"
            )
    splits.sort(key=lambda split: split.fid)
    place = str(expanded(data).resolve()) if find_source(data)[1] else absolute(data)
    made_by = {"command": "splits import", "file": Path(path).name}
    return SplitFile(place, dict(options or {}), start, tuple(splits), made_by), [*table.skipped, *notes, *matched.notes]


def _read(path: str | Path) -> dict[str, dict[Any, Any]]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"'{path}' holds {type(content).__name__}, but a published file has a dict of splits")
    published: dict[str, dict[Any, Any]] = {}
    for identity, split in content.items():
        missing = [key for key in _KEYS if key not in split] if isinstance(split, dict) else list(_KEYS)
        if missing:
            raise DataError(f"'{path}': split '{identity}' has no {missing[0]}; a published split has {', '.join(_KEYS)}, ...")
        fid = split["fid"]
        if isinstance(fid, bool) or not isinstance(fid, int | float) or not 0 <= fid < float("inf"):
            raise DataError(f"'{path}': split '{identity}' has the FID {fid!r}, but it must be a number >= 0")
        published[str(identity)] = split
    return published


class _Matched:
    """Names of a file as names of the data, and what the data lack.

    Args:
        table: the data.
        data: its name, for messages.
    """

    def __init__(self, table: Table, data: str) -> None:
        self.data = data
        self.notes: list[str] = []
        self.missing: dict[str, dict[str, None]] = {"classes": {}, "images": {}}
        self.short: set[str] = set()
        self.bare: list[str] = []  # episodes that lack their images
        self._claimed: dict[tuple[str, bool], str] = {}
        self._classes = _Finder(table.class_names, [lambda name: name, str.casefold, _without_number])
        sample_names = table.names()
        order = np.argsort(table.labels, kind="stable")
        ends = np.cumsum(np.bincount(table.labels, minlength=len(table.class_names)))[:-1]
        self._samples: dict[str, _Finder] = {}
        for label, rows in enumerate(np.split(order, ends)):
            names = [sample_names[int(row)] for row in rows]
            self._samples[table.class_names[label]] = _Finder(names, [_path, _two_parts, _file_name])
        self._products = _products(self._samples)

    def class_of(self, name: str) -> str | None:
        """The data's name of a class."""
        match = self._classes.find(name)
        is_product = match is None and name in self._products
        match = self._products[name] if is_product else match
        if match is None:
            self.missing["classes"][name] = None
        elif self._claimed.setdefault((match, is_product), name) != name:
            raise DataError(
                f"two classes of the file, '{self._claimed[match, is_product]}' and '{name}', fit class '{match}' of"
                f" '{self.data}'; rename the data's classes as the file does"
            )
        return match

    def all_samples_of(self, class_name: str) -> tuple[str, ...]:
        """The data's names of all samples of a class of the data."""
        return tuple(self._samples[class_name].names)

    def samples_of(self, class_name: str, names: Sequence[str]) -> list[str]:
        """The data's names of samples of a class of the data. Where they are all it has, all but two."""
        finder = self._samples[class_name]
        matches = []
        for name in names:
            match = finder.find(name)
            if match is None:
                self.missing["images"][f"{class_name}/{_file_name(name)}"] = None
            elif match not in matches:
                matches.append(match)
        if len(matches) >= len(finder.names):
            self.short.add(class_name)
            return matches[: max(0, len(finder.names) - LEFT)]
        return matches

    def report(self, allows_missing: bool) -> None:
        """Refuse what is missing, or note it."""
        texts = [_count(kind, list(names)) for kind, names in self.missing.items() if names]
        if texts and not allows_missing:
            first = next(iter(self.missing["classes"]), "")
            hint = suggestion(first, self._classes.names) if first and len(self._classes.names) <= 1000 else ""
            raise DataError(
                f"'{self.data}' lacks {' and '.join(texts)}.{hint if 'Did you' in hint else ''} --allow-missing leaves them out"
            )
        if self.short:
            self.notes.append(
                f"{_count('classes', sorted(self.short))} would lend all samples to an episode and lend all but {LEFT}"
            )
        if self.bare:
            shown = ", ".join(self.bare[:_NAMED]) + (", ..." if len(self.bare) > _NAMED else "")
            self.notes.append(f"episodes are left out because '{self.data}' lacks their images: {shown}")
        self.notes += [f"left out because '{self.data}' lacks them: {text}" for text in texts]


def _products(samples: dict[str, _Finder]) -> dict[str, str]:
    """Classes by what begins the names of all their files before the last `_`, where that is of one class only."""
    by_start: dict[str, str | None] = {}
    for name, finder in samples.items():
        starts = {_file_name(sample).rpartition("_")[0] for sample in finder.names}
        start = starts.pop() if len(starts) == 1 else ""
        if start:
            by_start[start] = None if start in by_start else name
    return {start: name for start, name in by_start.items() if name is not None}


class _Finder:
    """Finds names by forms of them, the strictest first. A form that two names share finds neither.

    Args:
        names: of the data, different.
        forms: from a name to one of its forms.
    """

    def __init__(self, names: Sequence[str], forms: Sequence[Callable[[str], str]]) -> None:
        self.names = names
        self.forms = forms
        self._by_form: list[dict[str, str | None]] = []
        for form in forms:
            name_of: dict[str, str | None] = {}
            for name in names:
                key = form(name)
                name_of[key] = None if key in name_of else name
            self._by_form.append(name_of)

    def find(self, name: str) -> str | None:
        for form, names in zip(self.forms, self._by_form, strict=True):
            if (match := names.get(form(name))) is not None:
                return match
        return None


def _without_number(name: str) -> str:
    return _NUMBER.sub("", name.casefold()).replace("_", " ").strip()


def _path(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _two_parts(name: str) -> str:
    return "/".join(_path(name).split("/")[-2:])


def _file_name(name: str) -> str:
    return _path(name).rsplit("/", 1)[-1]


def _count(kind: str, names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    noun = kind if len(names) > 1 else {"classes": "class", "images": "image"}[kind]
    return f"{len(names):,} {noun} ({shown})"


Sides = dict[str, list[str]]


def _sides(split: dict[Any, Any], identity: str, matched: _Matched) -> Sides:
    """The classes of both sides and of the parts of the training side, by the data's names."""
    sides: Sides = {}
    for key in ("train", "test", "split_train", "split_val"):
        if key in split:
            names = _names(split[key], f"split '{identity}': {key}")
            sides[key] = list(dict.fromkeys(match for name in names if (match := matched.class_of(name)) is not None))
    both = set(sides["train"]) & set(sides["test"])
    if both:
        raise DataError(f"split '{identity}': class '{min(both)}' is on both sides, training and test ({len(both)} in all)")
    if "split_train" not in sides:
        sides["split_train"] = sides["train"][: int(0.75 * len(sides["train"]))]
    # What the file does not say to validate with is trained on, so that the parts divide the side.
    validation = [name for name in sides.get("split_val", sides["train"]) if name not in set(sides["split_train"])]
    sides["split_val"] = [name for name in validation if name in set(sides["train"])]
    sides["split_train"] = [name for name in sides["train"] if name not in set(sides["split_val"])]
    return sides


def _names(value: Any, what: str) -> list[str]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} is {type(value).__name__}, but must be a list of names")
    return [name if isinstance(name, str) else str(name) for name in value if _is_name(name, what)]


def _is_name(name: Any, what: str) -> bool:
    if isinstance(name, str) or (isinstance(name, int) and not isinstance(name, bool)):  # datasets number some classes
        return True
    raise DataError(f"{what} has {type(name).__name__} where a name belongs")


def _default(sides: dict[str, Sides], published: dict[str, dict[Any, Any]], identity: str | None) -> tuple[str, list[str]]:
    """The split that the swaps of all others are counted from, and a note where it had to be guessed."""
    if identity is not None:
        if identity not in sides:
            raise DataError(f"there is no split '{identity}' to be the default.{suggestion(identity, sides)}")
        return identity, []
    for identity, side in sides.items():
        ordered = sorted([*side["train"], *side["test"]])
        if sorted(side["train"]) == ordered[: len(side["train"])]:
            return identity, [f"the default is split '{identity}': it trains on the first half of the classes by name"]
    easiest = min(sides, key=lambda identity: float(published[identity]["fid"]))
    return easiest, [f"the default is taken to be split '{easiest}', of the smallest FID; --default says another"]


def _split(
    identity: str, published: dict[Any, Any], side: Sides, first: Sides, first_fid: float, matched: _Matched
) -> ClassSplit:
    fid = float(published["fid"])
    swapped = len(set(side["train"]) & set(first["test"]))
    return ClassSplit(
        identity,
        fid,
        -swapped if fid < first_fid else swapped,
        max(0, len(first["train"]) - len(side["train"])),
        train=tuple(side["train"]),
        test=tuple(side["test"]),
        train_part=tuple(side["split_train"]),
        validation_part=tuple(side["split_val"]),
        episodes=_episodes(published.get("test_episodes", {}), identity, set(side["test"]), matched),
    )


def _episodes(value: Any, identity: str, test: set[str], matched: _Matched) -> dict[int, tuple[Episode, ...]]:
    what = f"split '{identity}': test_episodes"
    if not isinstance(value, dict):
        raise DataError(f"{what} is {type(value).__name__}, but must be a dict by numbers of shots")
    by_shots: dict[int, tuple[Episode, ...]] = {}
    for shots, episodes in value.items():
        if not str(shots).isdigit() or not int(shots):
            raise DataError(f"{what} has the key '{shots}', but must have numbers of shots")
        drawn = _in_order(episodes, what)
        read = [_episode(episode, int(shots), what, test, matched) for episode in drawn]
        usable = [episode for episode in read if can_be_learnt(episode, min(int(shots), 2))]
        if len(usable) < len(read):
            matched.bare.append(f"{len(read) - len(usable)} of {len(read)} of {shots} shots of split '{identity}'")
        if usable:
            by_shots[int(shots)] = tuple(usable)
    return dict(sorted(by_shots.items()))


def _in_order(value: Any, what: str) -> Iterable[Any]:
    """Episodes of a list, or of a dict by their numbers."""
    if not isinstance(value, dict | list | tuple):
        raise DataError(f"{what} has {type(value).__name__} where episodes belong")
    return value.values() if isinstance(value, dict) else value


def _whole_classes(value: list[Any] | tuple[Any, ...], what: str, test: set[str], matched: _Matched) -> Episode:
    """An episode whose support is all samples of some classes."""
    support: Episode = {}
    for name in _names(value, f"{what}, an episode of classes"):
        local = matched.class_of(name)
        if local is not None and local not in test:
            raise DataError(f"{what}: class '{name}' is no test class of the split")
        if local is not None:
            support[local] = matched.all_samples_of(local)
    if len(support) == len(test):
        raise DataError(f"{what}: an episode takes all {len(test)} test classes as support, so none is left to be searched")
    return support


def _episode(value: Any, shots: int, what: str, test: set[str], matched: _Matched) -> Episode:
    if isinstance(value, list | tuple):
        return _whole_classes(value, what, test, matched)
    if not isinstance(value, dict):
        raise DataError(f"{what} has {type(value).__name__} where an episode belongs")
    supports = {}
    for name, images in value.items():
        names = _names(images, f"{what}, class '{name}'")
        if len(set(names)) > shots:
            raise DataError(f"{what}: class '{name}' has {len(set(names))} images in an episode of {shots} shots")
        local = matched.class_of(str(name))
        if local is None:
            continue
        if local not in test:
            raise DataError(f"{what}: class '{name}' is no test class of the split")
        supports[local] = tuple(matched.samples_of(local, names))
    return supports
