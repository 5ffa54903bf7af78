"""Reading pickles that hold plain data, without executing them: nothing a file names is imported, looked up or called.

The standard library only cuts the file into opcodes (`pickletools.genops`). The few that plain data needs are followed here.
A file can name four functions, which stay names: what they would make of plain arguments is written out in `pickled_values`.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dmlcore.errors import DataError
from dmlcore.files import expanded
from dmlcore.protocols.shift.pickled_values import RESULTS, Bytes, Named, NumberType, Refused, printable, shown

LARGEST_FILE = 2**30  # bytes: it is read as a whole
_DEEPEST = 100  # containers within containers
_LONGEST_NUMBER = 300  # digits
_LARGEST_KEY = 2**60  # beyond, many different keys could have one hash, and filling a dict could take for ever
_EXPANSION = 64  # a memo lets a small file mean much: so many values and characters for every byte of the file
_SMALL = 2**20  # and so many in any case
_GLOBALS = {
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("_codecs", "encode"): "encode",
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_TEXTS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_BYTES = frozenset({"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"})


class _Mark:
    """Where the values of a container begin on the stack."""


_MARK = _Mark()


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle of dicts, lists, tuples, text, numbers, booleans, None and numpy scalars of these.

    Args:
        path: of the file.

    Returns:
        The value, with numpy scalars as Python's. Parts that the file shares are shared.

    Raises:
        DataError: no such file, anything else in it, a damaged or cut-off file.
    """
    path = expanded(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"'{path}' has {path.stat().st_size:,} bytes, but pickles up to {LARGEST_FILE:,} are read")
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"there is no file '{path}'") from None
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from error
    try:
        return parse_pickle(content)
    except DataError as error:
        raise DataError(f"'{path}' is not read: {error}") from None


def parse_pickle(content: bytes) -> Any:
    """As `read_pickle`, from bytes."""
    machine = _Machine()
    position = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of text with unknown escapes, which stay as they are
            for name, argument, position in _opcodes(content):  # noqa: B007
                machine.follow(name, argument)
    except Refused as refused:
        raise DataError(f"{refused} (at byte {position}). Only plain data is read from pickles, no code") from None
    if position != len(content) - 1:
        raise DataError(f"{len(content) - 1 - position:,} bytes follow the end of the pickle at byte {position}")
    value = machine.result()
    try:
        _check(value, max(_SMALL, _EXPANSION * len(content)))
    except Refused as refused:
        raise DataError(f"{refused}. Only plain data is read from pickles, no code") from None
    return value


def _opcodes(content: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and position of every opcode up to STOP. An argument that lies beyond the end is an error."""
    try:
        for opcode, argument, position in pickletools.genops(content):
            yield opcode.name, argument, position or 0
    except (ValueError, OverflowError, UnicodeError) as error:
        reason = printable(str(error)[:120])
        raise DataError(f"it is no pickle, or a damaged or cut-off one ({reason})") from None


class _Machine:
    """The stack and the memo of a pickle, and what the opcodes of plain data do to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.marks: list[int] = []
        self.actions: dict[str, Callable[[], None]] = {
            "MARK": self._mark,
            "EMPTY_DICT": lambda: self.stack.append({}),
            "EMPTY_LIST": lambda: self.stack.append([]),
            "EMPTY_TUPLE": lambda: self.stack.append(()),
            "DICT": lambda: self.stack.append(_fill({}, self._above_mark())),
            "LIST": lambda: self.stack.append(self._above_mark()),
            "TUPLE": lambda: self.stack.append(tuple(self._above_mark())),
            "TUPLE1": lambda: self.stack.append(tuple(self._take(1))),
            "TUPLE2": lambda: self.stack.append(tuple(self._take(2))),
            "TUPLE3": lambda: self.stack.append(tuple(self._take(3))),
            "APPEND": lambda: self._extend(self._take(1)),
            "APPENDS": lambda: self._extend(self._above_mark()),
            "SETITEM": lambda: self._set(self._take(2)),
            "SETITEMS": lambda: self._set(self._above_mark()),
            "STACK_GLOBAL": lambda: self._name(self._take(2)),
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "MEMOIZE": lambda: self._remember(len(self.memo)),
            "STOP": lambda: None,
        }

    def follow(self, name: str, argument: Any) -> None:
        """Do what an opcode says."""
        if name in self.actions:
            self.actions[name]()
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _INTEGERS:
            if not isinstance(argument, int) or abs(argument) >= 10**_LONGEST_NUMBER:
                raise Refused(f"a number has more than {_LONGEST_NUMBER} digits")
            self.stack.append(argument)
        elif name in ("FLOAT", "BINFLOAT"):
            self.stack.append(argument)
        elif name in _TEXTS:
            self.stack.append(_text(argument))
        elif name in _BYTES:
            self.stack.append(Bytes(argument))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._remember(argument)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise Refused(f"it takes entry {argument} of its memo, which is not there")
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self._name(argument.split(" ", 1))
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"it has the opcode {name}, which plain data does not need")

    def result(self) -> Any:
        """What is left at the end.

        Raises:
            DataError: nothing or more than one value.
        """
        if len(self.stack) != 1 or self.marks:
            raise DataError(f"the pickle ends with {len(self.stack)} values on its stack instead of one")
        return self.stack[0]

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise Refused("its stack is empty where a value is needed")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _above_mark(self) -> list[Any]:
        if not self.marks:
            raise Refused("a container ends that has not begun")
        first = self.marks.pop()
        taken = self.stack[first:]
        del self.stack[first:]
        return taken

    def _last(self, kind: type, what: str) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            raise Refused(f"it fills something that is no {what}")
        return self.stack[-1]

    def _extend(self, values: list[Any]) -> None:
        self._last(list, "list").extend(values)

    def _set(self, values: list[Any]) -> None:
        _fill(self._last(dict, "dict"), values)

    def _remember(self, index: int) -> None:
        (value,) = self._take(1)
        self.stack.append(value)
        self.memo[index] = value

    def _name(self, parts: list[Any]) -> None:
        module, name = parts if len(parts) == 2 else ("", parts[0])
        function = _GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if function is None:
            raise Refused(f"it names {shown(module)}.{shown(name)}, which could run code")
        self.stack.append(Named(function))

    def _reduce(self) -> None:
        function, arguments = self._take(2)
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise Refused("it calls something that is no function of plain data")
        self.stack.append(RESULTS[function.name](arguments))

    def _build(self) -> None:
        target, state = self._take(2)
        if not isinstance(target, NumberType) or target.order:
            raise Refused("it sets the state of something that has none")
        if not isinstance(state, tuple) or not 5 <= len(state) <= 9 or state[1] not in ("<", ">", "|", "="):
            raise Refused("it describes a numpy type that is none of plain numbers or text")
        if any(part is not None for part in state[2:5]):
            raise Refused("it describes a numpy type with fields or parts")
        target.order = state[1]
        self.stack.append(target)


def _text(value: Any) -> str:
    """Text as it is, but no half of a surrogate pair, which cannot be printed or written."""
    if not isinstance(value, str):
        raise Refused("a text is none")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Refused("a text is no valid Unicode") from None
    return value


def _fill(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise Refused("a dict has a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | int | float | bool | None):  # a tuple of tuples could take for ever to hash
            raise Refused(f"a dict has a key of type {_kind(key)}, but must have text or numbers")
        if isinstance(key, int) and abs(key) >= _LARGEST_KEY:
            raise Refused("a dict has a key of more than 60 bits")
        target[key] = value
    return target


def _kind(value: Any) -> str:
    return type(value).__name__.strip("_").lower()


def _check(value: Any, most: int) -> None:
    """Refuse what is no plain data, contains itself, is nested too deep, or too large once shared parts are written out.

    Each container is visited once, and its size remembered, so that a small file that means much is refused in no time.
    """
    sizes: dict[int, int] = {}
    open_now: set[int] = set()
    path: list[tuple[Any, Iterator[Any], list[int]]] = []

    def enter(container: Any) -> None:
        if id(container) in open_now:
            raise Refused("it contains itself")
        if len(path) == _DEEPEST:
            raise Refused(f"it is nested more than {_DEEPEST} deep")
        open_now.add(id(container))
        inside = (part for pair in container.items() for part in pair) if isinstance(container, dict) else iter(container)
        path.append((container, inside, [1]))

    total = _leaf(value)
    if total is None:
        enter(value)
    while path:
        container, inside, size = path[-1]
        for part in inside:
            part_size = _leaf(part)
            if part_size is None:
                part_size = sizes.get(id(part))
                if part_size is None:
                    enter(part)
                    break
            size[0] += part_size
            if size[0] > most:
                raise Refused("it means far more than it holds: parts of it are repeated again and again")
        else:
            path.pop()
            open_now.discard(id(container))
            sizes[id(container)] = size[0]
            if path:
                path[-1][2][0] += size[0]


def _leaf(value: Any) -> int | None:
    """The size of a value without parts. None for a container."""
    if isinstance(value, str):
        return 1 + len(value)
    if value is None or isinstance(value, bool | int | float):
        return 1
    if isinstance(value, dict | list | tuple):
        return None
    raise Refused(f"it holds {_WHAT.get(type(value), 'something')}, which is no plain data")


_WHAT: dict[type, str] = {Bytes: "bytes", NumberType: "a numpy type", Named: "a function"}
