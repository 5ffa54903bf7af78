"""Files of class splits: what `dmlcore splits` writes and `--splits` reads. How splits are built is in `protocols/shift`.

The file is JSON and holds names only, of classes and samples. `docs/guide/shift-and-few-shot.md` lists its keys.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.errors import DataError, suggestion
from dmlcore.files import encoded, expanded
from dmlcore.plugin_files import is_reference
from dmlcore.seals import SealError, seal, unseal

FORMAT = "dmlcore-splits-1"
_LONGEST_COUNT = 10  # digits of a number of shots
Episode = dict[str, tuple[str, ...]]
"""Class names to names of its support samples."""


@dataclass(frozen=True)
class ClassSplit:
    """One division of the classes into training and test.

    Attributes:
        id: unique in its file.
        fid: Fréchet distance between the class means of the two sides.
        swapped: classes exchanged between the sides, counted from the default split. Negative where made easier.
        removed: classes left out of each side.
        train: names of the training classes.
        test: names of the test classes.
        train_part: of `train`, those trained on.
        validation_part: of `train`, those that choose the checkpoint.
        episodes: by the number of shots k: episodes, each with up to k support samples of every test class, or with all samples
            of some of them.
    """

    id: str
    fid: float
    swapped: int
    removed: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_part: tuple[str, ...]
    validation_part: tuple[str, ...]
    episodes: dict[int, tuple[Episode, ...]] = field(default_factory=dict)

    def part_of_class(self, class_names: Sequence[str], where: str) -> np.ndarray:
        """Text [C]: `train`, `validation` or `test` of every class, or empty for classes the split leaves out.

        Args:
            class_names: of the data.
            where: the data, for messages.

        Raises:
            DataError: names that the data repeat, or lack.
        """
        number = {name: label for label, name in enumerate(class_names)}
        if len(number) < len(class_names):
            twice = next(name for label, name in enumerate(class_names) if number[name] != label)
            raise DataError(f"two classes of '{where}' are called '{twice}'; a split by names needs different ones")
        parts = np.full(len(class_names), "", dtype="<U10")
        missing: list[str] = []
        for part, names in (("train", self.train_part), ("validation", self.validation_part), ("test", self.test)):
            missing += [name for name in names if name not in number]
            parts[[number[name] for name in names if name in number]] = part
        if missing:
            raise DataError(
                f"split '{self.id}' names {len(missing)} classes that '{where}' lacks, the first is '{missing[0]}'."
                f"{suggestion(missing[0], class_names[:1000])} Is --data what the splits were made for?"
            )
        return parts


@dataclass(frozen=True)
class SplitFile:
    """Splits of one data set, from the easiest to the hardest.

    Attributes:
        data: what `--data` named.
        options: of the data set.
        default: id of the split that everything started from.
        splits: by rising Fréchet distance.
        made_by: the settings they were made with, or what they were imported from.
        progress: every step on the way: `stage`, `swapped`, `removed`, `fid`.
    """

    data: str
    options: dict[str, Any]
    default: str
    splits: tuple[ClassSplit, ...]
    made_by: dict[str, Any] = field(default_factory=dict)
    progress: tuple[dict[str, Any], ...] = ()

    def find(self, identity: str | None) -> ClassSplit:
        """The split of an id. None: the default one.

        Raises:
            DataError: there is none.
        """
        identity = self.default if identity is None else identity
        for split in self.splits:
            if split.id == identity:
                return split
        raise DataError(f"there is no split '{identity}'.{suggestion(identity, [split.id for split in self.splits])}")

    def check_data(self) -> None:
        """Refuse data that would run code: a file of splits is no place to name code in.

        Raises:
            DataError: its data are a class in a file.
        """
        if is_reference(self.data):
            raise DataError(
                f"the splits are of '{self.data}', which is code, and no file of splits leads to running code. If you trust it,"
                f" name it yourself: --data {self.data}"
            )

    def to_json(self) -> bytes:
        """The file's content. The same splits give the same bytes.

        Raises:
            ConfigError: the data lie at a path that is no UTF-8.
        """
        content = seal({"format": FORMAT, **asdict(self)})
        return encoded(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", "the file of splits")

    @classmethod
    def read(cls, path: str | Path) -> SplitFile:
        """Read and check a file.

        Raises:
            DataError: it is missing, no file of splits, cut off, or it contradicts itself.
        """
        try:
            raw = expanded(path).read_bytes()
        except FileNotFoundError:
            raise DataError(f"there is no file of splits '{path}'. `dmlcore splits ood` makes one") from None
        except (OSError, ValueError) as error:  # ValueError: the name holds a NUL
            raise DataError(f"cannot read the splits '{path}': {getattr(error, 'strerror', None) or error}") from error
        try:
            content = json.loads(raw)
            if b"\\ud" in raw.lower():  # JSON may write half of a surrogate pair, which no name can be
                json.dumps(content, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            is_pickle = raw[:1] in (b"\x80", b"(", b"c")
            shown = "is a pickle: `dmlcore splits import` reads it" if is_pickle else f"is no JSON, or cut off ({error})"
            raise DataError(f"the file of splits '{path}' {shown}") from None
        try:
            return cls._checked(unseal(content)[0])
        except SealError as error:
            raise DataError(f"the file of splits '{path}' is damaged: {error}. To edit it, remove its key `checksum`") from None
        except DataError as error:
            raise DataError(f"'{path}': {error}") from None

    @classmethod
    def _checked(cls, content: Any) -> SplitFile:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            form = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise DataError(f"its format is {form!r}, but must be '{FORMAT}'")
        _keys(content, "the file", ("format", *cls.__dataclass_fields__))
        splits = tuple(_split(entry, number) for number, entry in enumerate(_typed(content["splits"], list, "splits")))
        data, default = _typed(content["data"], str, "data"), _typed(content["default"], str, "default")
        file = cls(
            data=data,
            options=_typed(content["options"], dict, "options"),
            default=default,
            splits=splits,
            made_by=_typed(content["made_by"], dict, "made_by"),
            progress=tuple(_typed(content["progress"], list, "progress")),
        )
        identities = [split.id for split in splits]
        if len(set(identities)) < len(identities):
            raise DataError(f"two splits have the id '{next(i for i in identities if identities.count(i) > 1)}'")
        file.find(None)
        return file


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DataError(f"{what} is {type(value).__name__}, but must be {kind.__name__}")
    return value


def _keys(value: Any, what: str, expected: Sequence[str]) -> None:
    missing = [key for key in expected if key not in _typed(value, dict, what)]
    unknown = [key for key in value if key not in expected]
    if missing or unknown:
        raise DataError(f"{what} has no '{missing[0]}'" if missing else f"{what} has an unknown key '{unknown[0]}'")


def _names(value: Any, what: str) -> tuple[str, ...]:
    names = tuple(_typed(name, str, what) for name in _typed(value, list, what))
    if len(set(names)) < len(names):
        raise DataError(f"{what} names '{next(name for name in names if names.count(name) > 1)}' twice")
    return names


def _split(value: Any, number: int) -> ClassSplit:
    _keys(value, f"split {number}", tuple(ClassSplit.__dataclass_fields__))
    name = f"split '{_typed(value['id'], str, f'the id of split {number}')}'"
    fid = value["fid"]
    if isinstance(fid, bool) or not isinstance(fid, int | float) or not 0 <= fid < float("inf"):
        raise DataError(f"{name}: fid is {fid!r}, but must be a number >= 0")
    sides = {key: _names(value[key], f"{name}: {key}") for key in ("train", "test", "train_part", "validation_part")}
    both = set(sides["train"]) & set(sides["test"])
    if both:
        raise DataError(f"{name}: class '{min(both)}' is on both sides, training and test ({len(both)} in all)")
    if set(sides["train_part"]) & set(sides["validation_part"]) or {*sides["train_part"], *sides["validation_part"]} != set(
        sides["train"]
    ):
        raise DataError(f"{name}: train_part and validation_part must divide the classes of train")
    episodes = {}
    for shots, drawn in _typed(value["episodes"], dict, f"{name}: episodes").items():
        if not (shots.isascii() and shots.isdigit() and len(shots) < _LONGEST_COUNT and int(shots)):
            raise DataError(f"{name}: episodes has the key '{shots}', but must have numbers of shots")
        test, where = set(sides["test"]), f"{name}: an episode of {shots} shots"
        entries = _typed(drawn, list, f"{name}: episodes")
        episodes[int(shots)] = tuple(_episode(entry, where, int(shots), test) for entry in entries)
    counts = (_typed(value[key], int, f"{name}: {key}") for key in ("swapped", "removed"))
    return ClassSplit(value["id"], float(fid), *counts, **sides, episodes=episodes)


def _episode(value: Any, what: str, shots: int, test: set[str]) -> Episode:
    supports = {name: _names(support, f"{what}, class '{name}'") for name, support in _typed(value, dict, what).items()}
    for name, support in supports.items():
        if name not in test:
            raise DataError(f"{what} has class '{name}', which is no test class")
        if len(support) > shots and len(supports) == len(test):  # else whole classes may be support, and others are searched
            raise DataError(f"{what} has {len(support)} samples of class '{name}'")
    return supports
